//! `weighlock diff` of references: what is added is compared with what is not, and hashes spare reading.

use std::fs;

use weighlock_tests::Lab;
use weighlock_tests::checkpoint;
use weighlock_tests::host::{number, text};

#[test]
fn artifacts_and_paths_are_compared_with_each_other() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    let (old, new) = (lab.path("old"), lab.path("new"));
    checkpoint::hugging_face(&old, 1, 3);
    checkpoint::hugging_face(&new, 1, 3);
    // One shard of three is another one; the rest stays as it is.
    let shard = "model-00002-of-00003.safetensors";
    let other = lab.path("other");
    checkpoint::hugging_face(&other, 2, 3);
    fs::copy(other.join(shard), new.join(shard)).expect("copied");
    alpha.add(&old, "acme/bot:1");
    alpha.add(&new, "acme/bot:2");

    let same = alpha.run(&["diff", "acme/bot:1", &text(&old)]);
    assert_eq!(same.code, Some(0), "{same:?}");
    let same = same.last();
    assert_eq!((number(&same["tensors"]["equal"]), &same["a"]["name"]), (6, &"acme/bot:1".into()));

    let sides = [("acme/bot:1", "acme/bot:2"), ("acme/bot:1", &text(&new)), (&text(&old), "acme/bot:2")];
    let answers: Vec<_> = sides
        .iter()
        .map(|(a, b)| {
            let ran = alpha.run(&["diff", a, b]);
            assert_eq!(ran.code, Some(1), "{ran:?}");
            let mut answer = ran.last();
            answer["a"]["name"].take();
            answer["b"]["name"].take();
            answer
        })
        .collect();
    assert_eq!(number(&answers[0]["tensors"]["equal"]), 4);
    let differing = answers[0]["tensors"]["differing"].as_array().expect("a list");
    assert!(differing.len() == 2 && differing.iter().all(|tensor| tensor["change"] == "changed"));
    assert_eq!(
        number(&answers[0]["delta"]["moved_bytes"]),
        fs::metadata(new.join(shard)).expect("a file").len()
    );
    assert_eq!(answers[0], answers[1], "hashes say what bytes say");
    assert_eq!(answers[0], answers[2]);
}
