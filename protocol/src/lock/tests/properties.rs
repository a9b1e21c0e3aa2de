//! Properties over locks and reports of every shape: nothing is lost between memory, text and gate.

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::manifest::contract::{Adapter, DatasetRef, Lineage, PromptSchema};

/// Text that tries to leave its quotes.
fn hostile() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        any::<char>().prop_map(String::from),
        prop::sample::select(vec![
            "\"",
            "\\",
            "'''",
            "\"\"\"",
            "\r\n",
            "\n[[package]]\n",
            "\0",
            "\u{7f}",
            "\u{feff}",
            "\u{2028}",
            "#",
            " = ",
            "}",
            "]",
            "\u{1b}[2J",
            "\\u0041",
            "é",
        ])
        .prop_map(String::from),
    ];
    vec(pieces, 0..5).prop_map(|pieces| pieces.concat())
}

/// One line of at most 256 bytes, which is all that reports may hold.
fn line() -> impl Strategy<Value = String> {
    hostile().prop_map(|text| text.chars().filter(|c| !c.is_control()).take(60).collect())
}

fn sha() -> impl Strategy<Value = Sha256> {
    any::<[u8; 32]>().prop_map(Sha256)
}

fn integer() -> impl Strategy<Value = u64> {
    prop_oneof![0..10u64, 0..=i64::MAX as u64, Just(i64::MAX as u64)]
}

fn finite() -> impl Strategy<Value = f64> {
    let odd = vec![
        0.0,
        -0.0,
        1.0,
        0.1,
        1e16,
        1e-7,
        1e300,
        5e-324,
        f64::MAX,
        f64::MIN,
        f64::MIN_POSITIVE,
        9007199254740993.0,
    ];
    prop_oneof![
        prop::sample::select(odd),
        any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |x| x.is_finite())
    ]
}

prop_compose! {
    fn a_metric()(
        value in finite(), stderr in option::of(finite().prop_map(f64::abs)),
        n in option::of(1..=i64::MAX as u64), limited in any::<bool>(), n_shot in option::of(integer()),
        task_version in line(), higher_is_better in any::<Option<bool>>(), samples in option::of(sha()),
        scale in prop::sample::select(vec![Scale::Mean, Scale::ExpMean, Scale::MeanOverLn2, Scale::Other]),
    ) -> Metric {
        let n_total = limited.then_some(i64::MAX as u64);
        Metric { value, stderr, n, n_total, higher_is_better, scale, task_version, n_shot, samples }
    }
}

prop_compose! {
    fn a_report(hardware: &'static str)(
        suite in option::of(sha()), name in line(), version in line(), git_hash in option::of(line()),
        runtime in (line(), line(), line()), model in line(), memory_gib in option::of(integer()),
        seed in option::of(line()), chat_template_sha256 in option::of(sha()),
        metrics in btree_map("eval_loss|perplexity|[a-z0-9_.@,/+-]{1,8}", a_metric(), 1..4),
    ) -> Report {
        let (runtime, runtime_version, kernels) = runtime;
        Report {
            harness: Harness { name: format!("h{name}").chars().take(60).collect(), version, git_hash },
            runtime: Runtime { name: runtime, version: runtime_version, kernels },
            host: Some(HostProfile { hardware: hardware.into(), model, memory_gib }),
            suite, seed, chat_template_sha256, metrics,
            ..report(hardware, "suite", 1.0)
        }
    }
}

prop_compose! {
    fn a_contract()(
        texts in (option::of(hostile()), option::of(hostile()), option::of(hostile())),
        numbers in (option::of(integer()), option::of(integer())),
        hashes in (option::of(sha()), option::of(sha()), option::of(sha()), option::of(sha())),
        quantization in
            option::of((hostile(), any::<Option<u32>>(), any::<Option<i64>>(), option::of(hostile()))),
        schema in option::of((hostile(), hostile(), sha())),
        adapter in
            option::of((hostile(), option::of(integer()), option::of(hostile()), vec(hostile(), 0..3))),
        datasets in vec((hostile(), option::of(hostile()), option::of(sha())), 0..3),
        lineage in option::of((option::of(hostile()), option::of(hostile()))),
        format in prop::sample::select(vec![Format::Gguf, Format::Safetensors, Format::Other]),
    ) -> Contract {
        Contract {
            version: crate::manifest::contract::CONTRACT_VERSION,
            format,
            architecture: texts.0,
            precision: texts.1,
            base_model: texts.2,
            param_count: numbers.0,
            max_seq_len: numbers.1,
            tokenizer_sha256: hashes.0,
            chat_template_sha256: hashes.1,
            generation_config_sha256: hashes.2,
            tensor_root: hashes.3.map(|hash| LayerId(hash.0)),
            quantization: quantization.map(|(method, bits, group_size, file_type)| {
                Quantization { method, bits, group_size, file_type }
            }),
            prompt_schema: schema.map(|(name, version, sha256)| PromptSchema { name, version, sha256 }),
            adapter: adapter.map(|(peft_type, r, alpha, target_modules)| {
                Adapter { peft_type, r, alpha, target_modules }
            }),
            datasets: datasets
                .into_iter()
                .map(|(name, dvc_md5, sha256)| DatasetRef { name, dvc_md5, sha256 })
                .collect(),
            lineage: lineage.map(|(mlflow_run, git_commit)| Lineage { mlflow_run, git_commit }),
            mlflow: None,
            tensors: Vec::new(),
        }
    }
}

fn a_package() -> impl Strategy<Value = Package> {
    let name = prop::sample::select(vec!["acme/a", "acme/a-b", "acme/b", "a/c"]);
    let version = prop::sample::select(vec!["1.0.0", "2.0.0-rc.1+x", "step-12000"]);
    let plain = |c: char| if c.is_control() || matches!(c, '/' | '\\') { '_' } else { c };
    let path = hostile().prop_map(move |text| format!("f{text}").chars().map(plain).collect::<String>());
    let keys = btree_set(prop::sample::select(vec!["any", "cpu/x86-64-v4", "nvidia/sm_90"]), 0..3);
    let targets = keys.prop_flat_map(|keys| keys.into_iter().map(a_report).collect::<Vec<_>>());
    let stage = option::of(prop::sample::select(Stage::ALL.to_vec()));
    (name, version, btree_set(path, 0..4), a_contract(), targets, stage).prop_map(
        |(name, version, paths, contract, reports, channel)| {
            let files: Vec<Layer> = paths.iter().map(|path| layer(path, path.as_bytes())).collect();
            let target = |report: &Report| {
                Target::of_report(report, digest("r"), Some(ManifestDigest::of(b"e"))).expect("good")
            };
            let targets = reports.iter().map(target).collect();
            let (name, version) = (name.parse().expect("name"), version.parse().expect("tag"));
            let package = Package::new(name, version, &manifest(&files), &contract, targets).expect("good");
            Package { channel, ..package }
        },
    )
}

prop_compose! {
    fn a_lock()(
        packages in vec(a_package(), 0..4), program in hostile(),
        cluster in option::of(any::<[u8; 32]>().prop_map(ClusterId)), policy in option::of(sha()),
    ) -> Lock {
        let mut lock = lock_of(packages);
        lock.set_generated_by(&program);
        Lock { cluster, policy, ..lock }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_reads_back_equal_and_stays_as_it_is(lock in a_lock()) {
        let text = lock.to_toml();
        let read = Lock::parse(&text);
        prop_assert_eq!(read.as_ref(), Ok(&lock), "{}", text);
        prop_assert_eq!(read.expect("equal").to_toml(), text);
    }

    #[test]
    fn a_baseline_from_the_lock_is_the_report_that_was_locked(report in a_report("nvidia/sm_90")) {
        let target = Target::of_report(&report, digest("r"), None).expect("good");
        let pinned = Package { targets: vec![target], ..package("acme/a", "1.0.0", &[]) };
        let lock = Lock::parse(&lock_of([pinned]).to_toml()).expect("valid");
        let package = &lock.packages()[0];
        let back: Vec<(Sha256, Report)> = package.reports().collect();
        // Its artifact is known now; when it ended is of no use to the gate.
        let bound = Report { artifact: Some(package.digest), time: None, ..report };
        prop_assert_eq!(back, [(digest("r"), bound)]);
    }

    #[test]
    fn every_field_of_the_contract_is_kept_and_compared(one in a_contract(), other in a_contract()) {
        let files = manifest(&[layer("a", b"a")]);
        let pinned = package("acme/a", "1.0.0", &[]);
        let pinned = Package::new(pinned.name, pinned.version, &files, &one, vec![]).expect("good");
        prop_assert_eq!(pinned.contract(), &one);
        prop_assert_eq!(check(&pinned, &files, &one), []);
        prop_assert_eq!(check(&pinned, &files, &other).is_empty(), one == other);
    }

    #[test]
    fn any_text_is_read_or_refused_in_one_line(cut in 0..FULL.len(), put in hostile(), skip in 0..40usize) {
        let (start, end) = (FULL.floor_char_boundary(cut), FULL.floor_char_boundary(cut + skip));
        let text = format!("{}{put}{}", &FULL[..start], &FULL[end..]);
        match Lock::parse(&text) {
            Ok(lock) => prop_assert_eq!(Lock::parse(&lock.to_toml()), Ok(lock)),
            Err(error) => prop_assert!(!error.to_string().contains(char::is_control), "{error}"),
        }
    }
}
