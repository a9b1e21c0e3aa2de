//! Tests of the reader of lm-evaluation-harness, on files that harness 0.4.13 wrote (`tests/real/lm_eval.py --docs 5`).

use proptest::prelude::*;

use super::*;

/// Results, and sample logs with their names.
type Run = (Vec<u8>, Vec<(String, Vec<u8>)>);

/// One run as the harness wrote it.
macro_rules! run {
    ($dir:literal, $time:literal, [$($task:literal),*]) => {
        (
            include_bytes!(concat!("../testdata/lm_eval/", $dir, "/results_", $time, ".json")).to_vec(),
            vec![$((
                concat!("samples_", $task, "_", $time, ".jsonl").to_owned(),
                include_bytes!(concat!("../testdata/lm_eval/", $dir, "/samples_", $task, "_", $time, ".jsonl")).to_vec(),
            )),*],
        )
    };
    ($dir:literal, $time:literal) => {
        run!(
            $dir,
            $time,
            ["facts_answer", "facts_choice", "facts_choice_shout", "facts_last_word", "facts_text"]
        )
    };
}

fn a() -> Run {
    run!("a", "2026-11-22T18-37-28.679831")
}

fn b() -> Run {
    run!("b", "2026-11-22T18-37-29.179313")
}

fn chat() -> Run {
    run!("a-chat", "2026-11-22T18-37-30.661361", [])
}

fn limited() -> Run {
    run!("a-limited", "2026-11-22T18-37-30.174588", ["facts_text"])
}

fn good((results, samples): &Run) -> (Report, BTreeMap<String, Samples>) {
    read(results, samples).expect("the harness's own files")
}

fn why((results, samples): &Run) -> String {
    read(results, samples).expect_err("refused").0
}

/// The results with a change, by a place in them (a JSON pointer).
fn with(run: &Run, place: &str, value: Value) -> Run {
    let mut top: Value = serde_json::from_slice(&run.0).expect("JSON");
    *top.pointer_mut(place).unwrap_or_else(|| panic!("no {place}")) = value;
    (serde_json::to_vec(&top).expect("JSON"), run.1.clone())
}

/// A run with its texts changed: `from` must be there.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(bytes.to_vec()).expect("text");
    assert!(text.contains(from), "no {from}");
    text.replace(from, to).into_bytes()
}

fn with_log(mut run: Run, at: usize, from: &str, to: &str) -> Run {
    run.1[at].1 = replaced(&run.1[at].1, from, to);
    run
}

#[test]
fn a_run_reads_with_names_counts_directions_and_origin() {
    let (report, samples) = good(&a());
    let names: Vec<&str> = report.metrics.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "facts.acc",
            "facts_answer.exact_match@flexible",
            "facts_answer.exact_match@strict",
            "facts_choice.acc",
            "facts_choice.acc_norm",
            "facts_choice.mcc",
            "facts_choice_shout.acc",
            "facts_last_word.acc",
            "facts_last_word.perplexity",
            "facts_text.bits_per_byte",
            "facts_text.byte_perplexity",
            "facts_text.word_perplexity",
        ]
    );
    let answer = &report.metrics["facts_answer.exact_match@strict"];
    assert_eq!((answer.value, answer.n, answer.n_total), (0.8, Some(5), Some(5)));
    assert_eq!((answer.n_shot, answer.higher_is_better), (Some(2), Some(true)));
    assert_eq!(answer.task_version, "1.0");
    let words = &report.metrics["facts_text.word_perplexity"];
    assert_eq!((words.stderr, words.scale, words.higher_is_better), (None, Scale::ExpMean, Some(false)));
    assert_eq!(report.metrics["facts_text.bits_per_byte"].scale, Scale::MeanOverLn2);
    let group = &report.metrics["facts.acc"];
    assert_eq!((group.n, group.n_total, group.task_version.as_str()), (Some(10), Some(10), "2"));
    assert_eq!(report.metrics["facts_choice.mcc"].scale, Scale::Other);
    assert_eq!((report.harness.name.as_str(), report.harness.version.as_str()), (HARNESS_NAME, "0.4.13"));
    assert_eq!(report.runtime.name, "Ngram");
    assert_eq!(report.seed.as_deref(), Some("random=0,numpy=1234,torch=1234,fewshot=1234"));
    assert_eq!(report.time.map(|t| t.to_string()[..13].to_owned()).as_deref(), Some("2026-11-22T18"));
    // All but the one that no samples give.
    assert_eq!(samples.len(), report.metrics.len() - 1);
    assert!(report.metrics.iter().all(|(name, m)| m.samples == samples.get(name).map(Samples::digest)));
    assert!(is_lm_eval(&a().0) && !is_lm_eval(br#"{"metrics": {"a": 1}, "results": {}}"#));
}

#[test]
fn samples_pair_between_two_models_and_weigh_by_words_and_bytes() {
    let ((of_a, a), (of_b, b)) = (good(&a()), good(&b()));
    for (name, samples) in &a {
        let ids =
            |samples: &Samples| samples.iter().map(|s| (s.id.clone(), s.cluster.clone())).collect::<Vec<_>>();
        assert_eq!(ids(samples), ids(&b[name]), "{name}");
    }
    // Two metrics of one document, so one document.
    let (acc, words) = (&a["facts_choice.acc"], &a["facts_text.word_perplexity"]);
    let clusters = |samples: &Samples| samples.iter().map(|s| s.cluster.clone()).collect::<BTreeSet<_>>();
    assert_eq!((clusters(acc), clusters(words).len()), (clusters(words), 5));
    // "The keeper of X is Y." has six words as the harness counts them.
    assert!(words.iter().all(|sample| sample.weight == 6.0));
    assert!(a["facts_text.byte_perplexity"].iter().all(|sample| sample.weight > 25.0));
    assert_ne!(
        of_a.metrics["facts_text.word_perplexity"].value,
        of_b.metrics["facts_text.word_perplexity"].value
    );
    assert_eq!(a["facts.acc"].len(), 10, "a group has the samples of its tasks");
}

#[test]
fn the_suite_is_the_same_for_another_model_and_another_for_another_suite() {
    let suite = |run: &Run| good(run).0.suite.expect("a suite");
    let of_a = suite(&a());
    assert_eq!(of_a, suite(&b()), "other model, other addresses in memory");
    assert_eq!(of_a, suite(&limited()), "limits show in n");
    assert_eq!(of_a, suite(&(a().0, vec![])), "with or without samples");
    let address = "<function shout at 0x";
    assert!(String::from_utf8_lossy(&a().0).contains(address), "the file shows the case");
    let config = "/configs/facts_text";
    let same = [
        (format!("{config}/metadata"), serde_json::json!({"version": 1.0, "pretrained": "other"})),
        ("/config/model_args".into(), serde_json::json!("pretrained=other")),
        ("/configs/facts_answer/dataset_kwargs/data_files/test".into(), "/home/me/facts.jsonl".into()),
    ];
    for (place, value) in same {
        assert_eq!(of_a, suite(&with(&a(), &place, value)), "{place}");
    }
    let other = [
        ("/versions/facts_text".to_owned(), serde_json::json!(2.0)),
        ("/n-shot/facts_text".into(), 1.into()),
        ("/config/fewshot_seed".into(), 5.into()),
        ("/system_instruction".into(), "Be brief.".into()),
        (format!("{config}/dataset_path"), "parquet".into()),
        (format!("{config}/dataset_kwargs/data_files/test"), "other.jsonl".into()),
        (format!("{config}/test_split"), "train".into()),
        (format!("{config}/doc_to_target"), "{{question}}".into()),
        ("/configs/facts_answer/generation_kwargs/do_sample".into(), true.into()),
        ("/configs/facts_answer/filter_list/0/filter/0/regex_pattern".into(), ".*".into()),
        ("/configs/facts_answer/metric_list/0/ignore_case".into(), true.into()),
    ];
    for (place, value) in other {
        assert_ne!(of_a, suite(&with(&(a().0, vec![]), &place, value)), "{place}");
    }
}

#[test]
fn a_chat_template_and_a_limit_stay_visible() {
    let (report, _) = good(&chat());
    let template = "{% for m in messages %}<{{m.role}}>{{m.content}}\n{% endfor %}<assistant>";
    assert_eq!(report.chat_template_sha256, Some(Sha256::of(template.as_bytes())));
    assert_eq!(good(&a()).0.chat_template_sha256, None);
    assert_eq!(report.suite, good(&a()).0.suite, "the template has a field of its own");
    let (report, samples) = good(&limited());
    let words = &report.metrics["facts_text.word_perplexity"];
    assert_eq!((words.n, words.n_total), (Some(2), Some(5)));
    assert_eq!(samples["facts_text.word_perplexity"].len(), 2);
    let group = &report.metrics["facts.acc"];
    assert_eq!((group.n, group.n_total, group.scale), (Some(4), Some(10), Scale::Other));
}

#[test]
fn a_run_of_chosen_documents_is_limited_although_its_results_count_all() {
    // As `lm_eval --samples '{"facts_text": [0, 3]}'` leaves them, without logs.
    let run = (with(&a(), "/results/facts_text/sample_len", Value::from(2)).0, Vec::new());
    let (report, _) = good(&run);
    let limited: Vec<&str> = report
        .metrics
        .iter()
        .filter(|(_, metric)| metric.n < metric.n_total)
        .map(|(name, _)| name.as_str())
        .collect();
    assert!(!limited.is_empty() && limited.iter().all(|name| name.starts_with("facts_text.")), "{limited:?}");
    let (whole, _) = good(&(a().0, Vec::new()));
    assert!(whole.metrics.values().all(|metric| metric.n == metric.n_total));
}

#[test]
fn figures_that_are_no_numbers_are_refused_by_name() {
    let results = |from: &str, to: &str| why(&(replaced(&a().0, from, to), vec![]));
    let words = "\"byte_perplexity,none\": 1.8981508279397696";
    assert!(
        results(words, "\"byte_perplexity,none\": NaN")
            .contains("\"facts_text.byte_perplexity\": its value is NaN")
    );
    assert!(results(words, "\"byte_perplexity,none\": Infinity").contains("its value is Infinity"));
    assert!(results(words, "\"byte_perplexity,none\": \"1.9\"").contains("the text \"1.9\""));
    assert!(results("\"mcc_stderr,none\": 0.", "\"mcc_stderr,none\": -0.").contains("its stderr is -0."));
    assert!(
        results("\"mcc_stderr,none\": 0.", "\"mcc_stderr,none\": NaN, \"x\": 0.")
            .contains("its stderr is NaN")
    );
    // A document may hold one.
    let nan = with_log(a(), 4, "\"doc\": {\"text\"", "\"doc\": {\"score\": NaN, \"text\"");
    assert_eq!(good(&nan), good(&a()));
}

#[test]
fn broken_results_are_refused() {
    let results = |bytes: &[u8]| why(&(bytes.to_vec(), vec![]));
    let whole = a().0;
    assert!(results(&whole[..whole.len() / 2]).contains("not valid JSON: EOF"));
    assert!(results(b"[]").contains("no JSON object"));
    assert!(results(b"{}").contains("no object `results`"));
    // Found by fuzzing: any JSON with `results` was read, though `is_lm_eval` denied it.
    let of_another = br#"{"results": {"t": {"acc,none": 1}}}"#;
    assert!(!is_lm_eval(of_another) && results(of_another).contains("neither `lm_eval_version`"));
    assert!(results(br#"{"results": {"t": {}}, "lm_eval_version": "0.4.13"}"#).contains("no metric"));
    assert!(
        results(&replaced(&whole, "\"facts_choice_shout\": {", "\"facts_choice\": {"))
            .contains("stands twice")
    );
    assert!(results(&replaced(&whole, "\"facts_choice\"", "\"facts choice\"")).contains("other characters"));
    assert!(results(&vec![b' '; REPORT_BYTES_MAX + 1]).contains("samples belong into files of their own"));
    assert!(
        results(&replaced(&whole, "\"chat_template_sha\": null", "\"chat_template_sha\": \"12\""))
            .contains("64 hex")
    );
}

#[test]
fn samples_of_another_run_or_task_are_refused_with_their_file() {
    let (results, logs) = a();
    let only = |log: &(String, Vec<u8>)| why(&(results.clone(), vec![log.clone()]));
    assert!(
        only(&("samples_gsm8k_2026-11-22T18-37-28.1.jsonl".into(), vec![])).contains("task \"gsm8k\", which")
    );
    assert!(only(&("notes.jsonl".into(), vec![])).contains("\"notes.jsonl\" is no sample log"));
    assert!(
        only(&limited().1[0])
            .contains("of another run than the results: documents, prompts or targets differ")
    );
    // Another model's answers to the same questions.
    assert!(only(&b().1[4]).contains("samples do not match the results"));
    assert!(only(&b().1[1]).contains("samples do not match the results"));
    let mixed = (results.clone(), vec![logs[0].clone(), b().1[1].clone()]);
    assert!(why(&mixed).contains("is of another run than the sample logs of 2026-11-22T18-37-28.679831"));
    let twice = (results.clone(), vec![logs[0].clone(), logs[0].clone()]);
    assert!(why(&twice).contains("a second sample log"));
    let prefixed = ("runs/char-ngram-a/".to_owned() + &logs[0].0, logs[0].1.clone());
    assert!(read(&results, &[prefixed]).is_ok(), "directories before the name do not matter");
}

#[test]
fn broken_samples_are_refused_with_their_line() {
    let line = |from: &str, to: &str| why(&with_log(a(), 4, from, to));
    assert!(line("{\"doc_id\": 2", "\"doc_id\": 2").starts_with("line 3 of \"samples_facts_text_"));
    assert!(line("\"doc_id\": 1,", "").contains("line 2 of"));
    assert!(line("\"word_perplexity\": [-", "\"word_perplexity\": [NaN, -").contains("not a pair"));
    assert!(
        line("\"byte_perplexity\": [-3", "\"byte_perplexity\": [NaN, 3], \"x\": [-3")
            .contains("\"byte_perplexity\" is NaN")
    );
    assert!(line("\"filter\": \"none\"", "\"filter\": \"some\"").contains("filter \"some\" is not in them"));
    let (results, mut logs) = a();
    let at = logs[4].1.len() / 2;
    logs[4].1.truncate(at);
    assert!(why(&(results.clone(), logs.clone())).contains("EOF"));
    logs[4].1 = vec![b'x'; LM_EVAL_LINE_MAX + 1];
    assert!(why(&(results, logs)).contains("is longer than"));
}

#[test]
fn a_metric_that_skips_documents_has_fewer_samples_but_no_limit() {
    // As a task's own `process_results` may do; without `task_hashes` nothing else changes.
    let run = with_log(a(), 3, "\"acc\": 0}", "\"other\": 0}");
    let (report, samples) = good(&with(&run, "/results/facts_last_word/acc,none", 1.0.into()));
    let metric = &report.metrics["facts_last_word.acc"];
    assert_eq!((metric.n, metric.n_total, samples["facts_last_word.acc"].len()), (Some(4), Some(4), 4));
}

#[test]
fn a_statistic_of_the_task_s_own_is_a_mean_only_if_the_samples_show_it() {
    let own = with(&a(), "/configs/facts_answer/metric_list/0/aggregation", "def agg(items):\n ...".into());
    let (report, samples) = good(&own);
    assert!(samples.contains_key("facts_answer.exact_match@strict"));
    assert_eq!(report.metrics["facts_answer.exact_match@strict"].scale, Scale::Mean);
    let (report, samples) = good(&with(&own, "/results/facts_answer/exact_match,strict", 0.7.into()));
    assert!(!samples.contains_key("facts_answer.exact_match@strict"));
    assert_eq!(report.metrics["facts_answer.exact_match@strict"].scale, Scale::Other);
    // A plain mean must be one.
    assert!(
        why(&with(&a(), "/results/facts_answer/exact_match,strict", 0.7.into())).contains("do not match")
    );
}

#[test]
fn a_group_that_no_pooling_gives_has_no_samples() {
    let (report, samples) = good(&with(&a(), "/results/facts/acc,none", 0.81.into()));
    assert!(!samples.contains_key("facts.acc"));
    assert_eq!((report.metrics["facts.acc"].scale, report.metrics["facts.acc"].n), (Scale::Other, Some(10)));
    let cycle =
        with(&a(), "/group_subtasks", serde_json::json!({"facts": ["x"], "x": ["facts", "facts_choice"]}));
    assert!(good(&cycle).1.contains_key("facts.acc"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_files_are_read_or_refused(at in 0usize..40_000, byte in any::<u8>(), cut in any::<bool>()) {
        let (mut results, mut logs) = a();
        let file = if at % 2 == 0 { &mut results } else { &mut logs[at % 5].1 };
        let at = at % file.len();
        if cut { file.truncate(at) } else { file[at] = byte }
        let _ = read(&results, &logs);
    }
}
