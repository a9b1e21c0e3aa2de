//! What the lock file's text, its reader, and pinning promise.

mod properties;

use super::*;
use crate::gate::{Report, Scale};
use crate::manifest::contract::{Format, Quantization, Tensor};
use crate::manifest::{Layer, LayerKind, Manifest, build, contract::LayerTensors};

/// One of everything, as it is written.
const FULL: &str = include_str!("testdata/weighlock.lock");

fn digest(text: &str) -> Sha256 {
    Sha256::of(text.as_bytes())
}

fn layer(path: &str, bytes: &[u8]) -> Layer {
    Layer {
        path: path.into(),
        kind: LayerKind::Weights,
        size: bytes.len() as u64,
        id: LayerId::of(bytes),
        sha256: Sha256::of(bytes),
    }
}

fn manifest(files: &[Layer]) -> Manifest {
    build(files, &layer("c", b"contract"), &layer("m", b"config")).expect("valid")
}

fn contract() -> Contract {
    let tensor = Tensor {
        name: "w".into(),
        dtype: "F32".into(),
        shape: vec![1],
        offset: 0,
        len: 4,
        blake3: LayerId::of(b"w"),
    };
    Contract {
        format: Format::Gguf,
        architecture: Some("llama".into()),
        quantization: Some(Quantization { method: "gguf".into(), bits: Some(4), ..Quantization::default() }),
        tensor_root: Some(Contract::tensor_root_of([&tensor])),
        tensors: vec![LayerTensors {
            path: "model.gguf".into(),
            layer: LayerId::of(b"model"),
            tensors: vec![tensor],
        }],
        ..Contract::default()
    }
}

fn metric(value: f64) -> Metric {
    Metric {
        value,
        stderr: Some(0.01),
        n: Some(100),
        n_total: Some(100),
        higher_is_better: Some(false),
        scale: Scale::Mean,
        task_version: "1".into(),
        n_shot: None,
        samples: Some(digest("samples")),
    }
}

fn report(hardware: &str, suite: &str, loss: f64) -> Report {
    Report {
        version: crate::gate::report::REPORT_VERSION,
        artifact: None,
        suite: Some(digest(suite)),
        harness: Harness { name: "custom".into(), ..Harness::default() },
        runtime: Runtime { name: "vllm".into(), ..Runtime::default() },
        host: Some(HostProfile { hardware: hardware.into(), model: String::new(), memory_gib: None }),
        seed: None,
        time: Some(crate::UnixTime(5)),
        chat_template_sha256: None,
        metrics: [("eval_loss".to_owned(), metric(loss)), ("mmlu.acc".to_owned(), metric(0.5))].into(),
    }
}

fn target(hardware: &str, suite: &str) -> Target {
    Target::of_report(&report(hardware, suite, 2.5), digest("report"), None).expect("good")
}

fn package(name: &str, version: &str, hardware: &[&str]) -> Package {
    let files = [layer("z.json", b"{}"), layer("model.gguf", b"model")];
    let targets = hardware.iter().map(|key| target(key, "suite")).collect();
    let (name, version) = (name.parse().expect("name"), version.parse().expect("tag"));
    Package::new(name, version, &manifest(&files), &contract(), targets).expect("good")
}

fn lock_of(packages: impl IntoIterator<Item = Package>) -> Lock {
    let mut lock = Lock::new("weighlock 0.1.0");
    for package in packages {
        lock.set(package).expect("good");
    }
    lock
}

/// `name version keys` of each entry.
fn entries(lock: &Lock) -> Vec<String> {
    let keys = |p: &Package| p.hardware().into_iter().collect::<Vec<_>>().join(",");
    lock.packages()
        .iter()
        .map(|p| format!("{} {} {}", p.name, p.version, keys(p)).trim().to_owned())
        .collect()
}

fn why(text: &str) -> String {
    let why = Lock::parse(text).expect_err("refused").to_string();
    assert!(!why.contains('\n'), "{why}");
    why
}

/// Lines of `new` that are not in `old` at their place; the texts must have as many lines.
fn changed_lines(old: &str, new: &str) -> Vec<String> {
    assert_eq!(old.lines().count(), new.lines().count());
    old.lines().zip(new.lines()).filter(|(a, b)| a != b).map(|(_, b)| b.to_owned()).collect()
}

#[test]
fn the_canonical_text_is_kept_byte_for_byte() {
    let lock = Lock::parse(FULL).expect("valid");
    assert_eq!(lock.to_toml(), FULL);
    let full = lock.packages().iter().find(|package| package.kind == Kind::Adapter).expect("there");
    assert_eq!(full.channel, Some(Stage::Production));
    assert_eq!(full.contract().adapter.as_ref().and_then(|adapter| adapter.r), Some(16));
    assert_eq!(full.targets[0].metrics["wikitext.word_perplexity"].scale, Scale::ExpMean);
    assert_eq!(full.targets[0].host.memory_gib, Some(80));
}

#[test]
fn other_order_and_comments_give_the_same_lock() {
    let lock = lock_of([package("acme/b", "1.0.0", &["any"]), package("acme/a", "1.0.0", &[])]);
    let text = lock.to_toml();
    let at: Vec<usize> = text.match_indices("\n[[package]]").map(|(at, _)| at).collect();
    let turned = format!("{}\n# note\n{}{}", &text[..at[0]], &text[at[1]..], &text[at[0]..at[1]]);
    assert_ne!(turned, text);
    let read = Lock::parse(&turned).expect("valid");
    assert_eq!(read, lock);
    assert_eq!(read.to_toml(), text);
}

#[test]
fn one_changed_field_changes_one_line() {
    let base = package("acme/bot", "1.0.0", &["cpu/x86-64-v4", "nvidia/sm_90"]);
    let text = lock_of([package("acme/a", "1.0.0", &[]), base.clone()]).to_toml();
    let other = digest("other");
    type Edit = fn(&mut Package, Sha256);
    let edits: [(&str, Edit); 9] = [
        ("version = \"1.0.1\"", |p, _| p.version = "1.0.1".parse().expect("tag")),
        ("digest = ", |p, d| p.digest = ManifestDigest(d.0)),
        ("  { path = \"model.gguf\", size = 5, ", |p, d| p.files[0].sha256 = d),
        ("tensor_root = ", |p, d| p.contract.tensor_root = Some(LayerId(d.0))),
        ("architecture = \"a\\nb\"", |p, _| p.contract.architecture = Some("a\nb".into())),
        ("report = ", |p, d| p.targets[1].report_sha256 = d),
        ("hardware_profile = ", |p, _| p.targets[0].runtime.version = "0.9".into()),
        ("  { name = \"mmlu.acc\", value = 0.25, ", |p, _| {
            p.targets[0].metrics.get_mut("mmlu.acc").expect("there").value = 0.25;
        }),
        ("  { name = \"mmlu.acc\", value = 0.5, stderr = 1e-9, ", |p, _| {
            p.targets[1].metrics.get_mut("mmlu.acc").expect("there").stderr = Some(1e-9);
        }),
    ];
    for (line, edit) in edits {
        let mut edited = base.clone();
        edit(&mut edited, other);
        let changed = changed_lines(&text, &lock_of([package("acme/a", "1.0.0", &[]), edited]).to_toml());
        assert!(matches!(&changed[..], [one] if one.starts_with(line)), "{line}: {changed:#?}");
    }
    // A short name is a second place of the same figure.
    let mut edited = base;
    edited.targets[0].metrics.get_mut("eval_loss").expect("there").value = 2.25;
    let changed = changed_lines(&text, &lock_of([package("acme/a", "1.0.0", &[]), edited]).to_toml());
    assert!(
        matches!(&changed[..], [short, metric] if short == "eval_loss = 2.25" && metric.contains("value = 2.25"))
    );
}

#[test]
fn what_is_not_known_is_refused_with_its_line() {
    let line_of = |part: &str| 1 + FULL[..FULL.find(part).expect("there")].matches('\n').count();
    for (part, new, says) in [
        ("generated_by", "requires = 1\ngenerated_by", "unknown field `requires`"),
        ("kind = \"base\"", "kind = \"base\"\nsource = \"x\"", "unknown field `source`"),
        ("kind = \"base\"", "kind = \"model\"", "unknown variant `model`"),
        ("{ path = \"config.json\"", "{ mode = 1, path = \"config.json\"", "unknown field `mode`"),
        ("bits = 4", "bits = 4, zero_point = true", "unknown field `zero_point`"),
        ("higher_is_better", "p = 1, higher_is_better", "unknown field `p`"),
        ("kernels", "driver = \"5\", kernels", "unknown field `driver`"),
        ("git_hash", "hash = \"5\", git_hash", "unknown field `hash`"),
        ("name = \"acme/support-bot\"", "name = \"support-bot\"", "is not a reference"),
        ("version = \"1.4.0\"", "version = \"production\"", "is a stage, not a tag"),
        ("size = 570", "size = -1", "invalid value"),
        ("channel = ", "channel = \"canary\"\nchannel = ", "duplicate key"),
    ] {
        // What is put before a part on a line of its own moves the place by one line at most.
        let said = why(&FULL.replacen(part, new, 1));
        let line = line_of(part);
        let near = [line, line + 1].iter().any(|line| said.contains(&format!("line {line}: ")));
        assert!(said.contains(says) && near && said.contains("; "), "{new} at {line}: {said}");
    }
    let short = why(&FULL.replacen("digest = \"sha256:", "digest = \"sha256:0", 1));
    assert!(short.contains("not a manifest digest"), "{short}");
    assert!(why("version = 1\n<<<<<<< ours\n").contains("line 2"));
    assert!(why("version = 1\n\"a\\nb; c\" = 1\n").contains("unknown field"));
    assert!(why("").contains("missing field `version`"));
}

#[test]
fn a_newer_version_is_named_before_its_keys() {
    assert_eq!(Lock::parse("version = 2\nresolver = 3\n"), Err(LockError::Newer(2)));
    assert!(why("version = 2\n").contains("written by a newer weighlock"));
    assert_eq!(Lock::parse("version = 0\n"), Err(LockError::Version(0)));
}

#[test]
fn content_that_contradicts_itself_is_refused() {
    for (part, new, says) in [
        ("total_bytes = ", "total_bytes = 1", "total_bytes is 1"),
        ("quantization_bits = 4", "quantization_bits = 8", "quantization_bits"),
        ("eval_loss = 2.31", "eval_loss = 2.3", "eval_loss is 2.3, but its metric says 2.31"),
        ("eval_loss = 2.31", "perplexity = 9.0", "perplexity has no metric"),
        ("value = 2.31", "value = nan", "metric \"eval_loss\": its value is NaN"),
        ("value = 2.31", "value = -inf", "metric \"eval_loss\": its value is -inf"),
        ("stderr = 0.02", "stderr = -0.5", "its stderr is -0.5"),
        ("name = \"wikitext.word_perplexity\"", "name = \"eval_loss\"", "metric eval_loss is there twice"),
        ("path = \"config.json\"", "path = \"../config.json\"", "leaves its directory"),
        ("path = \"adapter_config.json\"", "path = \"a; b\\n/../c\"", "`a, b\\n/../c` leaves"),
        ("hardware = \"nvidia/sm_90\"", "hardware = \"\"", "the hardware key is empty"),
        ("memory_gib = 80", "memory_gib = 9223372036854775808", "memory_gib is 9223372036854775808, over"),
    ] {
        let text = match part {
            "total_bytes = " => FULL.replacen(part, "total_bytes = 1 # ", 1),
            _ => FULL.replacen(part, new, 1),
        };
        assert!(why(&text).contains(says), "{new}: {}", why(&text));
    }
    let one = lock_of([package("acme/a", "1.0.0", &["any"])]).to_toml();
    let entry = &one[one.find("\n[[package]]").expect("there")..];
    assert!(why(&format!("{one}{entry}")).contains("acme/a is there twice for any"));
    let whole = lock_of([package("acme/a", "2.0.0", &[])]).to_toml();
    assert!(why(&format!("{whole}{entry}")).contains("there 2 times, once for all hardware"));
}

#[test]
fn numbers_are_short_and_minus_zero_is_zero() {
    for (value, text) in [(-0.0, "0.0"), (3.0, "3.0"), (0.1 + 0.2, "0.30000000000000004"), (5e-324, "5e-324")]
    {
        let mut package = package("acme/a", "1.0.0", &["any"]);
        package.targets[0].metrics = [("acc".to_owned(), metric(value))].into();
        let lock = lock_of([package]);
        let written = lock.to_toml();
        assert!(written.contains(&format!("value = {text}, ")), "{value:?}: {written}");
        assert_eq!(Lock::parse(&written), Ok(lock));
    }
}

#[test]
fn limits_hold() {
    let text = " ".repeat(LOCK_BYTES_MAX + 1);
    assert_eq!(Lock::parse(&text), Err(LockError::TooBig(LOCK_BYTES_MAX + 1)));
    let mut big = package("acme/a", "1.0.0", &[]);
    big.contract.architecture = Some("\u{1}".repeat(LOCK_BYTES_MAX / 6));
    let mut lock = lock_of([package("acme/a", "1.0.0", &["any"])]);
    let before = lock.clone();
    assert!(matches!(lock.set(big), Err(LockError::TooBig(_))));
    assert_eq!(lock, before, "a refused package changes nothing");
    let many: Vec<String> = (0..=TARGETS_MAX).map(|n| format!("cpu/{n}")).collect();
    let mut wide = package("acme/a", "1.0.0", &[]);
    wide.targets = many.iter().map(|key| target(key, "suite")).collect();
    assert!(lock.set(wide).expect_err("refused").to_string().contains("257 targets are more than the 256"));
    let mut program = Lock::new(&"\u{1}".repeat(1_000));
    program.cluster = Some(ClusterId([0; 32]));
    program.policy = Some(Sha256([0; 32]));
    assert_eq!(program.generated_by().len(), GENERATED_BY_MAX);
    assert!((1_500..HEADER_BYTES_MAX).contains(&program.to_toml().len()));
    program.set_generated_by("x\n\"");
    assert_eq!(Lock::parse(&program.to_toml()), Ok(program));
}

#[test]
fn pinning_replaces_what_was_there_for_the_same_hardware_only() {
    let (cpu, gpu) = ("cpu/x86-64-v4", "nvidia/sm_90");
    let mut lock = lock_of([
        package("acme/bot", "1.0.0", &[gpu, cpu]),
        package("acme/other", "1.0.0", &[]),
        package("acme/bot", "1.1.0", &[cpu, gpu]),
    ]);
    assert_eq!(entries(&lock), ["acme/bot 1.1.0 cpu/x86-64-v4,nvidia/sm_90", "acme/other 1.0.0"]);
    lock.set(package("acme/bot", "1.2.0", &[cpu])).expect("good");
    assert_eq!(
        entries(&lock),
        ["acme/bot 1.2.0 cpu/x86-64-v4", "acme/bot 1.1.0 nvidia/sm_90", "acme/other 1.0.0"]
    );
    let name: Artifact = "acme/bot".parse().expect("name");
    let on = |lock: &Lock, key: &str| lock.find_on(&name, key).map(|p| p.version.to_string());
    assert_eq!(lock.find(&name).count(), 2);
    assert_eq!(on(&lock, gpu).as_deref(), Some("1.1.0"));
    assert_eq!(on(&lock, "amd/gfx942"), None);
    lock.set(package("acme/bot", "1.3.0", &["any"])).expect("good");
    assert_eq!(on(&lock, "amd/gfx942").as_deref(), Some("1.3.0"));
    assert_eq!(on(&lock, cpu).as_deref(), Some("1.2.0"));
    lock.set(package("acme/bot", "2.0.0", &[])).expect("good");
    assert_eq!(entries(&lock), ["acme/bot 2.0.0", "acme/other 1.0.0"]);
    assert_eq!(on(&lock, cpu).as_deref(), Some("2.0.0"));
    lock.set(package("acme/bot", "2.1.0", &[cpu])).expect("good");
    assert_eq!(entries(&lock), ["acme/bot 2.1.0 cpu/x86-64-v4", "acme/other 1.0.0"]);
}

#[test]
fn a_target_needs_its_hardware_and_stands_once_for_a_suite() {
    let nowhere = Report { host: None, ..report("any", "suite", 2.0) };
    let refused = Target::of_report(&nowhere, digest("r"), None).expect_err("refused").to_string();
    assert!(refused.contains("does not say where it ran; "), "{refused}");
    let endless = report("any", "suite", f64::INFINITY);
    assert!(Target::of_report(&endless, digest("r"), None).is_err_and(|e| e.to_string().contains("inf")));
    let mut twice = package("acme/a", "1.0.0", &[]);
    twice.targets = vec![target("any", "one"), target("any", "two")];
    assert_eq!(twice.hardware().len(), 1);
    lock_of([twice.clone()]);
    twice.targets.push(target("any", "one"));
    assert!(
        Lock::new("")
            .set(twice)
            .is_err_and(|e| e.to_string().contains("two targets are of one suite on any"))
    );
}

#[test]
fn what_is_there_now_is_compared_file_by_file_and_field_by_field() {
    let pinned = package("acme/bot", "1.0.0", &[]);
    let files = [layer("z.json", b"{}"), layer("model.gguf", b"model")];
    assert_eq!(check(&pinned, &manifest(&files), &contract()), []);
    // Another version of the contract's form, or no tensor index, is no difference of content.
    let bare = Contract { version: 9, tensors: Vec::new(), ..contract() };
    assert_eq!(check(&pinned, &manifest(&files), &bare), []);

    let now = [layer("model.gguf", b"modem"), layer("z.json", b"{ }"), layer("a; b", b"")];
    let mut says = contract();
    says.quantization = None;
    says.max_seq_len = Some(4096);
    let said: Vec<String> = check(&pinned, &manifest(&now), &says).iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "a, b: is not in the lock file".to_owned(),
            format!("model.gguf: is {}, locked is {}", digest("modem"), digest("model")),
            "z.json: has 3 bytes, locked are 2".into(),
            "quantization is not set, locked is { method = \"gguf\", bits = 4 }".into(),
            "max_seq_len is 4096, locked is not set".into(),
        ]
    );
    let turned = manifest(&[files[1].clone(), files[0].clone()]);
    let moved = check(&pinned, &turned, &contract());
    assert_eq!(moved, [Difference::Manifest { locked: pinned.digest, found: turned.digest() }]);
    let mut renamed = files;
    renamed[0].id = LayerId::of(b"other");
    assert!(matches!(&check(&pinned, &manifest(&renamed), &contract())[..], [Difference::Blake3 { .. }]));
}

#[test]
fn sizes_are_compared_before_anything_is_read() {
    let pinned = package("acme/bot", "1.0.0", &[]);
    assert_eq!(check_sizes(&pinned, [("z.json", 2), ("model.gguf", 5)]), []);
    assert_eq!(
        check_sizes(&pinned, [("z.json", 3), ("new", 0)]),
        [
            Difference::Missing { path: "model.gguf".into() },
            Difference::Extra { path: "new".into() },
            Difference::Size { path: "z.json".into(), locked: 2, found: 3 },
        ]
    );
}
