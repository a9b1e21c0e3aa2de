//! A loader in another container, as in Kubernetes: another uid, another mount namespace, no store in sight. It has the
//! directory of the sockets, read-only, and the loaders' group. Needs root, which makes the namespaces.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use weighlock_tests::binary::workspace;
use weighlock_tests::host::{number, text};
use weighlock_tests::{Host, Lab, checkpoint};

const MODEL: &str = "acme/model:1.0.0";
/// The daemon's user, and the group of loaders.
const DAEMON: (u32, u32) = (17_400, 17_401);
const LOADER_UID: u32 = 11_000;
const POD: &str = "8d2c41a6-9a7c-4a54-8a2e-0f7d8a0c1b2d";

/// Opens, maps and compares; says what it could see and do besides.
const LOADER: &str = r#"
import hashlib, json, os, sys, weighlock
socket, ref, store = sys.argv[1:]
told = {"uid": os.getuid(), "store": os.path.exists(store)}
try:
    with weighlock.open(ref, socket) as artifact:
        told["digests"] = {file.path: hashlib.sha256(file.mmap() or b"").hexdigest() for file in artifact.walk()}
        writable = []
        for file in artifact.walk():
            try:
                os.close(os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDWR))
                writable.append(file.path)
            except OSError:
                pass
        told["writable"] = writable
except weighlock.Error as error:
    told["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(told))
"#;

/// A directory that goes with its owner.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A cgroup that is named as a pod's container is, if cgroups can be made here.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/mounts").ok()?;
        let mounted = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (dir, kind) = (fields.next()?, fields.next()?);
            kind.starts_with("cgroup").then(|| PathBuf::from(dir))
        });
        let name = format!("pod{POD}/{}", "0123456789abcdef".repeat(4));
        mounted
            .map(|dir| dir.join(&name))
            .find(|dir| {
                let made = fs::create_dir_all(dir).is_ok() && dir.join("cgroup.procs").exists();
                if !made {
                    Self::remove(dir);
                }
                made
            })
            .map(Self)
    }

    fn remove(dir: &Path) {
        let _ = fs::remove_dir(dir);
        let _ = dir.parent().map(fs::remove_dir);
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        Self::remove(&self.0);
    }
}

/// Runs the loader in a mount namespace of its own in which `hidden` is empty and `sockets` lies at `mounted`.
fn in_a_pod(
    hidden: &Path,
    sockets: &Path,
    pod: &Path,
    cgroup: Option<&Cgroup>,
    uid: u32,
    group: u32,
) -> Value {
    let mounted = pod.join("run");
    let enter = cgroup.map(|cgroup| format!("echo $$ > {}/cgroup.procs", text(&cgroup.0)));
    let script = format!(
        "set -e\n{}\nmount -t tmpfs none {hidden}\nmount --bind {sockets} {mounted}\n\
         mount -o remount,bind,ro {mounted}\n\
         exec setpriv --reuid {uid} --regid {uid} --groups {group} --no-new-privs \
         env -i PATH=\"$PATH\" PYTHONPATH={client} PYTHONDONTWRITEBYTECODE=1 WEIGHLOCK_CONNECT_PATIENCE=0 \
         python3 -c \"$1\" {socket} {MODEL} {store}\n",
        enter.unwrap_or_default(),
        hidden = text(hidden),
        sockets = text(sockets),
        mounted = text(&mounted),
        client = text(&pod.join("client")),
        socket = text(&mounted.join("loader.sock")),
        store = text(&hidden.join("data")),
    );
    let ran: Output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--", "sh", "-c", &script, "sh", LOADER])
        .output()
        .expect("unshare runs");
    let errors = String::from_utf8_lossy(&ran.stderr);
    serde_json::from_slice(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {errors}"))
}

fn copy_client(to: &Path) {
    let from = workspace().join("node/python/src/weighlock");
    let package = to.join("weighlock");
    fs::create_dir_all(&package).expect("made");
    for entry in fs::read_dir(from).expect("the client").flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "py") {
            fs::copy(entry.path(), package.join(entry.file_name())).expect("copied");
        }
    }
}

fn open(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changed");
}

/// A daemon as a service: a user of its own, sockets below /run/weighlock, a group for loaders.
fn service(lab: &Lab, sockets: &Path) -> Host {
    let mut host = lab.host("alpha");
    host.user = Some(DAEMON);
    for path in [&lab.path("alpha"), &host.data_dir, sockets] {
        fs::create_dir_all(path).expect("made");
        chown(path, Some(DAEMON.0), Some(DAEMON.1)).expect("root gives it away");
    }
    open(&host.data_dir, 0o750);
    open(sockets, 0o750);
    host.environment = vec![
        ("WEIGHLOCK_SOCKET_DIR".into(), text(sockets)),
        ("WEIGHLOCK_SOCKETS__LOADER_GROUP".into(), DAEMON.1.to_string()),
    ];
    host.start();
    host
}

#[test]
fn a_loader_of_another_uid_and_mount_namespace_maps_a_model() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: it takes root to make the namespaces");
        return;
    }
    let lab = Lab::new();
    open(&lab.path(""), 0o755);
    let sockets = PathBuf::from(format!("/run/weighlock/test-{}", std::process::id()));
    let _removed = Removed(sockets.clone());
    let pod = lab.path("pod");
    fs::create_dir_all(pod.join("run")).expect("made");
    copy_client(&pod.join("client"));
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 3, 2);

    let alpha = service(&lab, &sockets);
    alpha.add(&source, MODEL);
    let hidden = lab.path("alpha");
    let cgroup = Cgroup::new();

    let told = in_a_pod(&hidden, &sockets, &pod, cgroup.as_ref(), LOADER_UID, DAEMON.1);
    assert_eq!((number(&told["uid"]), &told["store"]), (u64::from(LOADER_UID), &false.into()), "{told}");
    let digests = serde_json::to_value(checkpoint::digests(&source)).expect("JSON");
    assert_eq!(told["digests"], digests, "{told}");
    assert_eq!(told["writable"], serde_json::json!([]), "no descriptor opens again for writing");

    // Without the group: the door is shut. As the daemon's own user, who could write: refused.
    let outside = in_a_pod(&hidden, &sockets, &pod, None, LOADER_UID, LOADER_UID);
    assert!(outside["error"].as_str().is_some_and(|e| e.contains("Permission denied")), "{outside}");
    let own = in_a_pod(&hidden, &sockets, &pod, None, DAEMON.0, DAEMON.1);
    assert!(own["error"].as_str().is_some_and(|e| e.contains("daemon's own user")), "{own}");

    // The audit log knows who it was.
    let log = alpha.ok(&["audit", MODEL]).to_string();
    assert!(log.contains(&format!("\"uid\":{LOADER_UID}")), "{log}");
    if cgroup.is_some() {
        assert!(log.contains(POD), "the pod by its uid: {log}");
    } else {
        eprintln!("not looked at: no cgroup can be made here, so no pod has a name");
    }
}
