//! Evaluators that try to outlive their run, and what they leave in the result directory.

use super::*;

const SIGSEGV: i32 = 11;

#[test]
fn what_detaches_itself_is_ended_with_the_run() {
    for mode in modes() {
        // A session of its own, its parent gone, all files closed but the log.
        let script = "setsid sh -c '(trap \"\" TERM HUP; setsid sleep 1000 &) & sleep 1000' $0 & setsid sh -c 'sh -c \"sleep 1000\" $0 &' $0; echo done";
        let bench = Bench::sh(mode, script);
        assert_eq!(bench.outcome().ended, Ended::Exit(0), "{mode:?}");
        assert_eq!(bench.log(), "done\n");
    }
}

#[test]
fn one_that_kills_its_parents_gains_nothing() {
    for mode in modes() {
        let script = "sh -c 'sleep 1000' $0 & kill -9 $PPID; sleep 1; echo still here; exit 7";
        let bench = Bench::sh(mode, script);
        let outcome = bench.outcome();
        match mode.swept() {
            // The first process of a PID namespace takes no signals from inside.
            false => assert_eq!(outcome.ended, Ended::Exit(7), "{mode:?}"),
            true => assert_eq!(outcome.ended, Ended::Lost, "{mode:?}"),
        }
    }
}

#[test]
fn one_that_kills_itself_is_told_from_one_that_fails() {
    assert_eq!(Bench::sh(Mode::Full, "kill -SEGV $$").outcome().ended, Ended::Signal(SIGSEGV));
    assert_eq!(Bench::sh(Mode::Swept, "exit 3").outcome().ended, Ended::Exit(3));
}

#[test]
fn nothing_outlives_a_supervisor_that_is_killed() {
    for mode in modes() {
        let script = "setsid sh -c '(sh -c \"sleep 1000\" $0 &) & sleep 1000' $0 & sleep 1000";
        let bench = Bench::sh(mode, script);
        let mut supervisor = bench.start();
        until("the evaluator runs", || bench.left().len() >= 3);
        supervisor.kill().expect("killed");
        supervisor.wait().expect("reaped");
        until("nothing is left", || bench.left().is_empty());
    }
}

#[test]
fn one_that_leaves_nothing_is_a_run_without_files() {
    for mode in modes() {
        let bench = Bench::new(mode, "true");
        let outcome = bench.outcome();
        assert_eq!(outcome.ended, Ended::Exit(0));
        assert_eq!((outcome.files.len(), outcome.refused.len(), outcome.printed_bytes), (0, 0, 0));
        assert_eq!(bench.log(), "");
    }
}

#[test]
fn links_and_pipes_in_the_result_are_refused_and_it_cannot_be_replaced() {
    for mode in modes() {
        let script = r#"
            rmdir "$2" && ln -s /etc "$2"
            ln -s /etc/passwd "$2/report.json"; mkfifo "$2/pipe"; echo x > "$2/real"; mkdir "$2/closed"
            echo y > "$2/closed/inside"; chmod 0 "$2/closed"; mkdir -p "$TMPDIR/a/b"; chmod 0 "$TMPDIR/a""#;
        let bench = Bench::sh(mode, script);
        let outcome = bench.outcome();
        let files: Vec<&str> = outcome.files.iter().map(|file| file.path.as_str()).collect();
        let refused: Vec<&str> = outcome.refused.iter().map(|refused| refused.path.as_str()).collect();
        assert_eq!(
            (files, refused),
            (vec!["closed/inside", "real"], vec!["pipe", "report.json"]),
            "{mode:?}"
        );
    }
}
