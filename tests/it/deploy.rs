//! What `node/deploy` installs: the unit and the manifests pass the tools that read them, where those are here.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use weighlock_tests::binary::{weighlock, workspace};
use weighlock_tests::host::text;
use weighlock_tests::{Lab, Ran};

fn deployed(name: &str) -> PathBuf {
    workspace().join("node/deploy").join(name)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What a tool says; `None`, and a word on standard error, where it is not installed.
fn tool(name: &str, arguments: &[&str]) -> Option<Ran> {
    // No cluster is to be asked, whatever this user's configuration says.
    match Command::new(name).args(arguments).env("KUBECONFIG", "/dev/null").output() {
        Ok(output) => Some(Ran::of(output)),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            eprintln!("not run: {name} {arguments:?}; {name} is not installed");
            None
        }
        Err(e) => panic!("{name}: {e}"),
    }
}

/// What `systemd-analyze` says of a unit with this text. Of other units of this machine it tells, too: that is left out.
fn complaints(lab: &Lab, text_of_unit: &str) -> Option<Vec<String>> {
    // Its name is the unit's.
    let path = lab.path("weighlock.service");
    fs::write(&path, text_of_unit).expect("written");
    let ran = tool("systemd-analyze", &["verify", &text(&path)])?;
    Some(ran.stderr.lines().filter(|line| line.contains("weighlock")).map(str::to_owned).collect())
}

#[test]
fn systemd_finds_no_fault_with_the_unit() {
    let lab = Lab::new();
    // It wants programs that can be run: this one is not installed, and not every machine has a `kill`.
    let program = text(weighlock());
    let unit = read(&deployed("systemd/weighlock.service"));
    let unit = unit.replace("/usr/bin/weighlock", &program).replace("/bin/kill", &program);
    let Some(found) = complaints(&lab, &unit) else { return };
    assert_eq!(found, [""; 0]);
    // It does see faults.
    for (right, wrong) in [
        ("LockPersonality=", "LockPersonalty="),
        ("Type=notify", "Type=notified"),
        (program.as_str(), "/nowhere/weighlock"),
    ] {
        assert!(unit.contains(right), "{right}");
        let found = complaints(&lab, &unit.replace(right, wrong)).expect("it is installed");
        assert!(!found.is_empty(), "{wrong} passes");
    }
}

/// The kinds of objects that kustomize makes of a directory, and how many of them are in a namespace.
fn built(dir: &Path) -> Option<(BTreeSet<String>, usize)> {
    let ran = tool("kubectl", &["kustomize", &text(dir)])?;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let kinds = ran.stdout.lines().filter_map(|line| line.strip_prefix("kind: ")).map(str::to_owned);
    let placed = ran.stdout.lines().filter(|line| *line == "  namespace: weighlock");
    Some((kinds.collect(), placed.count()))
}

#[test]
fn the_manifests_are_built() {
    let kinds = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let dir = deployed("kubernetes");
    let Some(found) = built(&dir) else { return };
    assert_eq!(found, (kinds(&["ConfigMap", "DaemonSet", "Namespace"]), 2));
    // Those that are applied by hand are read with the others.
    let lab = Lab::new();
    let copy = lab.path("kubernetes");
    fs::create_dir(&copy).expect("a directory");
    for entry in fs::read_dir(&dir).expect("the manifests").flatten() {
        fs::copy(entry.path(), copy.join(entry.file_name())).expect("copied");
    }
    let list = copy.join("kustomization.yaml");
    fs::write(&list, read(&list) + "  - secret.yaml\n  - loader.yaml\n").expect("written");
    let found = built(&copy).expect("it is installed");
    assert_eq!(found, (kinds(&["ConfigMap", "DaemonSet", "Namespace", "Pod", "Secret"]), 4));
}

/// Where `written` has something that `known` has not, or other than it.
fn lost(written: &Value, known: Option<&Value>, at: &str, out: &mut Vec<String>) {
    match (written, known) {
        (Value::Object(fields), Some(Value::Object(others))) => {
            for (name, value) in fields {
                // These two the questions set themselves.
                if name != "image" && name != "annotations" {
                    lost(value, others.get(name), &format!("{at}.{name}"), out);
                }
            }
        }
        (Value::Array(items), Some(Value::Array(others))) if items.len() == others.len() => {
            for (i, (value, other)) in items.iter().zip(others).enumerate() {
                lost(value, Some(other), &format!("{at}[{i}]"), out);
            }
        }
        // What is off by default need not be kept.
        (Value::Bool(false) | Value::Null, None) => {}
        (value, other) if Some(value) != other => out.push(format!("{at}: {value}, not {other:?}")),
        _ => {}
    }
}

/// Fields of a manifest that Kubernetes does not know; an error where a value is of a wrong type. Asks no cluster.
fn unknown(path: &Path) -> Option<Result<Vec<String>, String>> {
    let path = text(path);
    let ask = |what: &[&str]| {
        let ran = tool("kubectl", &[what, &["--local", "-o", "json", "-f", &path]].concat())?;
        if ran.code != Some(0) {
            return Some(Err(ran.stderr));
        }
        Some(Ok(serde_json::from_str::<Value>(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}", ran.stdout))))
    };
    // One takes it as it is written; the other has to know what a pod is, and drops what it does not know of it.
    let (written, known) = (ask(&["annotate", "looked=at"])?, ask(&["set", "image", "*=looked:at"])?);
    Some(written.and_then(|written| {
        let mut out = Vec::new();
        lost(&written, Some(&known?), "", &mut out);
        Ok(out)
    }))
}

#[test]
fn the_pods_have_only_fields_that_kubernetes_knows() {
    for name in ["daemonset.yaml", "loader.yaml"] {
        let Some(found) = unknown(&deployed("kubernetes").join(name)) else { return };
        assert_eq!(found, Ok(Vec::new()), "{name}");
    }
    // It does see faults.
    let lab = Lab::new();
    let path = lab.path("daemonset.yaml");
    let right = read(&deployed("kubernetes/daemonset.yaml"));
    let changed = |from: &str, to: &str| {
        assert!(right.contains(from), "{from}");
        fs::write(&path, right.replace(from, to)).expect("written");
        unknown(&path).expect("it is installed")
    };
    let misspelled = changed("hostPID: true", "hostPIDs: true").expect("it is read all the same");
    assert_eq!(misspelled, [".spec.template.spec.hostPIDs: true, not None"]);
    changed("maxUnavailable: 1", "maxUnavailable: [1]").expect_err("a list is no number");
}
