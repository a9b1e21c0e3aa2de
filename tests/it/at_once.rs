//! Twenty commands at once on overlapping artifacts, and stores that a daemon cannot use.

use std::fs;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use weighlock_tests::host::{files_below, number, string, text};
use weighlock_tests::{Lab, Ran, checkpoint, until};

use crate::bad_input::Tmpfs;

const AT_ONCE: usize = 20;

/// Runs `command` twenty times at once.
fn all_at_once(command: impl Fn(usize) -> Ran + Sync) -> Vec<Ran> {
    let together = Barrier::new(AT_ONCE);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..AT_ONCE)
            .map(|i| {
                let (together, command) = (&together, &command);
                scope.spawn(move || {
                    together.wait();
                    command(i)
                })
            })
            .collect();
        running.into_iter().map(|one| one.join().expect("a command")).collect()
    })
}

fn all_well(what: &str, ran: &[Ran]) {
    for one in ran {
        assert_eq!(one.code, Some(0), "{what}: {}", one.stderr);
    }
}

#[test]
fn twenty_of_everything_at_once() {
    let lab = Lab::new();
    let alpha = lab.founder("alpha");
    // Five directories with layers in common: the small files are the same.
    let sources: Vec<_> = (0..5).map(|i| lab.path(&format!("source-{i}"))).collect();
    for (i, dir) in sources.iter().enumerate() {
        checkpoint::hugging_face(dir, i as u64, 2);
        if i > 0 {
            fs::copy(sources[0].join("config.json"), dir.join("config.json"))
                .expect("the same configuration");
        }
    }
    let reference = |i: usize| format!("acme/model-{}:1.0.{}", i % 5, i % 10);
    // Each reference twice, with the same bytes: the second time it is there already.
    let added = all_at_once(|i| alpha.run(&["add", &text(&sources[i % 5]), &reference(i)]));
    all_well("add", &added);
    let digest = |ran: &Ran| string(&ran.last()["digest"]);
    for i in 0..AT_ONCE {
        assert_eq!(digest(&added[i]), digest(&added[i % 5]), "equal bytes, equal digest");
    }
    // Different bytes under one new tag: one of them has it, the others are told.
    let raced = all_at_once(|i| alpha.run(&["add", &text(&sources[i % 5]), "acme/raced:1.0.0"]));
    let winner = string(&alpha.listed("acme/raced:1.0.0").expect("one of them")["digest"]);
    for one in &raced {
        match one.code {
            Some(0) => assert_eq!(digest(one), winner),
            _ => assert_eq!(one.complaints(5), Vec::<String>::new()),
        }
    }
    assert!(raced.iter().filter(|one| one.code == Some(0)).count() >= 4, "those with the winner's bytes");
    assert_eq!(files_below(&alpha.data_dir.join("staging")), Vec::<std::path::PathBuf>::new());

    let pulled = all_at_once(|i| {
        alpha.run(&["pull", &reference(i), "--to", &text(&lab.path(&format!("pulled-{i}")))])
    });
    all_well("pull", &pulled);
    let paths = all_at_once(|i| alpha.run(&["path", &reference(i)]));
    all_well("path", &paths);
    for i in 0..AT_ONCE {
        let expected = checkpoint::digests(&sources[i % 5]);
        checkpoint::same(&checkpoint::digests(&lab.path(&format!("pulled-{i}"))), &expected, "pulled");
        let view = std::path::PathBuf::from(string(&paths[i].last()["path"]));
        checkpoint::same(&checkpoint::view_digests(&view), &expected, "the view");
    }

    // On another host, where nothing is yet: all of them fetch, five artifacts in all.
    let beta = lab.joined("beta", &alpha);
    for i in 0..10 {
        beta.hears_of(&reference(i));
    }
    all_well("path on another host", &all_at_once(|i| beta.run(&["path", &reference(i)])));

    // Removed while others add the same again.
    let removed = AtomicUsize::new(0);
    let mixed = all_at_once(|i| {
        if i % 2 == 0 {
            return alpha.run(&["add", &text(&sources[i % 5]), &reference(i)]);
        }
        let ran = alpha.run(&["rm", &reference(i)]);
        removed.fetch_add(usize::from(ran.code == Some(0)), Ordering::Relaxed);
        ran
    });
    for one in mixed.iter().filter(|one| one.code != Some(0)) {
        let code = one.code.unwrap_or_default();
        assert!(code == 4 || code == 5, "{}", one.stderr);
        assert_eq!(one.complaints(code), Vec::<String>::new());
    }
    assert!(removed.load(Ordering::Relaxed) > 0);
    // Whatever was removed last, all of it opens: from here, or from the other host.
    for i in 0..10 {
        let opened = alpha.loader().open(&reference(i)).unwrap_or_else(|e| panic!("{}: {e}", reference(i)));
        let expected = checkpoint::digests(&sources[i % 5]);
        for (path, file) in opened.files {
            assert_eq!(checkpoint::sha256(file), expected[&path]);
        }
    }
    for dir in ["staging", "quarantine"] {
        assert_eq!(files_below(&alpha.data_dir.join(dir)), Vec::<std::path::PathBuf>::new());
    }
    let status = alpha.ok(&["status"]);
    let layers = files_below(&alpha.data_dir.join("layers"));
    let sealed = layers.iter().filter(|path| path.extension().is_none()).count() as u64;
    assert_eq!(number(&status["layers"]), sealed, "every file is in the table, and the other way round");
    assert_eq!(alpha.logged("panicked") + beta.logged("panicked"), 0);
}

#[test]
fn stores_that_cannot_be_used_are_refused_in_one_line() {
    let lab = Lab::new();
    let remount = |disk: &Tmpfs, how: &str| {
        let done = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(disk.path()).status();
        assert!(done.expect("mount runs").success());
    };
    let up = |host: &weighlock_tests::Host| {
        let output = host.up_command().output().expect("the program runs");
        Ran::of(output)
    };
    let mut wrong = Vec::new();
    let mut expect = |what: &str, ran: &Ran, code: i32, words: &str| {
        wrong.extend(ran.complaints(code).into_iter().map(|complaint| format!("{what}: {complaint}")));
        if !ran.stderr.contains(words) {
            wrong.push(format!("{what}: {words:?} is not in {:?}", ran.stderr));
        }
    };

    // Read-only from the start, and after it was used.
    let disk = Tmpfs::mount(lab.path("read-only"), "64m");
    let mut host = lab.host("host");
    host.data_dir = disk.path().join("data");
    host.configure("[limits]\nfree_bytes_min = 1048576\n");
    remount(&disk, "ro");
    expect("read-only, new", &up(&host), 6, "Read-only");
    remount(&disk, "rw");
    host.start();
    let source = lab.path("source");
    checkpoint::hugging_face(&source, 1, 1);
    host.add(&source, "acme/model:1.0.0");
    assert!(host.term().success());
    remount(&disk, "ro");
    expect("read-only, used", &up(&host), 6, "Read-only");
    remount(&disk, "rw");
    host.start();
    host.loader().open("acme/model:1.0.0").expect("nothing was lost");

    // Full from the start: nothing is begun that cannot be finished.
    let full = Tmpfs::mount(lab.path("full"), "256k");
    let mut cramped = lab.host("cramped");
    cramped.data_dir = full.path().join("data");
    let filler = full.path().join("filler");
    let _ = fs::write(&filler, vec![0; 300 << 10]);
    expect("full, new", &up(&cramped), 6, "space");
    // With room it starts, whatever the attempt left.
    fs::remove_file(filler).expect("removed");
    let done = Command::new("mount").args(["-o", "remount,size=64m"]).arg(full.path()).status();
    assert!(done.expect("mount runs").success());
    cramped.start();
    until("it answers", || (cramped.run(&["status"]).code == Some(0)).then_some(()));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
