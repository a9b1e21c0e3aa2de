//! Evaluators that use too much of something.

use super::*;

const MIB: u64 = 1 << 20;

#[test]
fn one_that_hangs_and_ignores_signals_is_ended() {
    for mode in modes() {
        let mut bench = Bench::sh(mode, "trap '' TERM INT HUP QUIT; echo begun; while :; do sleep 1; done");
        bench.order.limits.wall_seconds = 1;
        assert_eq!(bench.outcome().ended, Ended::Limit(Limit::Time), "{mode:?}");
        assert_eq!(bench.log(), "begun\n");
    }
}

#[test]
fn one_that_forks_without_end_is_ended() {
    for mode in modes() {
        // It has an end, which it must not reach, for the machine's sake.
        let script = "f() { sh -c 'sleep 10' $0 & [ ${#1} = 9 ] || { (f 1$1) & (f 1$1) & }; wait; }; f 1";
        let mut bench = Bench::sh(mode, script);
        bench.order.limits.processes = 150;
        let outcome = bench.outcome();
        match outcome.record.processes {
            // It may be refused so many processes that it gives up.
            Held::Rlimit => assert!(bench.log().contains("Cannot fork"), "{mode:?}: {outcome:?}"),
            _ => assert_eq!(outcome.ended, Ended::Limit(Limit::Processes), "{mode:?}: {}", bench.log()),
        }
    }
}

#[test]
fn one_that_uses_too_much_memory_is_ended() {
    for mode in modes() {
        let mut bench = Bench::act(mode, "eat 2000");
        bench.order.limits.memory_bytes = Some(128 * MIB);
        let outcome = bench.outcome();
        assert_eq!(outcome.ended, Ended::Limit(Limit::Memory), "{mode:?}");
        assert!(outcome.peak_memory_bytes > 128 * MIB);
    }
}

#[test]
fn address_space_alone_is_not_memory() {
    let mut bench = Bench::act(Mode::Full, "reserve");
    bench.order.limits.memory_bytes = Some(256 * MIB);
    assert_eq!(bench.outcome().ended, Ended::Exit(0));
}

#[test]
fn one_that_fills_the_disk_is_ended() {
    for mode in modes() {
        for script in [
            r#"head -c 64M /dev/zero > "$2/one""#,
            r#"for i in 1 2 3 4 5 6 7 8; do head -c 3M /dev/zero > "$2/$i"; done"#,
            r#"head -c 64M /dev/zero > "$TMPDIR/one"; sleep 100"#,
            r#"i=0; while [ $i -lt 2000 ]; do i=$((i+1)); : > "$2/$i"; done"#,
            r#"cd "$2"; i=0; while [ $i -lt 200 ]; do i=$((i+1)); mkdir d && cd d; done"#,
        ] {
            let mut bench = Bench::sh(mode, script);
            let limits = &mut bench.order.limits;
            (limits.out_bytes, limits.tmp_bytes, limits.out_files) = (8 * MIB, 8 * MIB, 1000);
            assert_eq!(bench.outcome().ended, Ended::Limit(Limit::Disk), "{mode:?}: {script}");
        }
    }
}

#[test]
fn one_that_computes_too_long_is_ended() {
    for mode in [Mode::Full, Mode::Swept] {
        let mut bench = Bench::sh(mode, "while :; do :; done & while :; do :; done");
        bench.order.limits.cpu_seconds = Some(1);
        let outcome = bench.outcome();
        assert_eq!(outcome.ended, Ended::Limit(Limit::Cpu), "{mode:?}");
        assert!(outcome.cpu_seconds >= 1.0);
    }
}

#[test]
fn of_one_that_prints_without_end_beginning_and_end_are_kept() {
    for mode in modes() {
        let mut bench = Bench::sh(mode, "echo first; yes | head -c 3000000; echo last");
        bench.order.limits.log_bytes = 10_000;
        let outcome = bench.outcome();
        assert_eq!(outcome.ended, Ended::Exit(0));
        assert_eq!((outcome.printed_bytes, outcome.left_out_bytes), (3_000_011, 2_990_011), "{mode:?}");
        let log = bench.log();
        assert!(log.starts_with("first\ny\n") && log.ends_with("y\nlast\n") && log.len() < 10_100);

        let mut bench = Bench::sh(mode, "yes");
        (bench.order.limits.log_bytes, bench.order.limits.wall_seconds) = (10_000, 1);
        assert_eq!(bench.outcome().ended, Ended::Limit(Limit::Time), "{mode:?}");
    }
}

#[test]
fn a_limit_on_open_files_holds() {
    let mut bench = Bench::sh(Mode::Full, "ulimit -n; ulimit -c");
    bench.order.limits.open_files = 100;
    bench.outcome();
    assert_eq!(bench.log(), "100\n0\n");
}
