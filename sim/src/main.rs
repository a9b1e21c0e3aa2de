//! The rehearsal's command line: one run, a sweep over seeds, one seed of a sweep again, or the gate's error rates.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use weighlock_sim::args::RunArgs;
use weighlock_sim::calibrate;
use weighlock_sim::draw::draw;
use weighlock_sim::fold::{self, FoldOptions};
use weighlock_sim::scenario::Scenario;
use weighlock_sim::{Options, Report, World};

#[derive(Debug, Parser)]
#[command(name = "weighlock-sim", version, about = "Rehearses Weighlock hosts in one thread from one seed.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one scenario, prints a table and draws the completion curve; the last line is JSON.
    Run(Box<RunArgs>),
    /// Runs small hostile worlds, one per seed and scenario, and reports those that violate an invariant.
    Sweep {
        /// How many seeds
        #[arg(long, default_value_t = 50)]
        seeds: u64,
        /// The first seed
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// Only this scenario
        #[arg(long, value_enum)]
        scenario: Option<Scenario>,
        /// Goes on after a violation and lists all
        #[arg(long)]
        all: bool,
    },
    /// Runs worlds of the statement fold, one per seed: gossip, partitions, crashes, hostile authors, then healing.
    Statements {
        /// How many seeds
        #[arg(long, default_value_t = 1)]
        seeds: u64,
        /// The first seed
        #[arg(long, default_value_t = 1)]
        from: u64,
    },
    /// Measures how often the gate passes what is too bad and fails what is not; the last line is JSON.
    Calibrate {
        /// Pairs of runs of each kind
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
        pairs: u64,
        /// The only randomness
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Only kinds whose name contains this
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Runs one seed of a sweep again and prints everything.
    Replay {
        seed: u64,
        /// Only this scenario
        #[arg(long, value_enum)]
        scenario: Option<Scenario>,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Sweep { seeds, from, scenario, all } => {
            let code = if scenario.is_none() { statements(seeds, from, false) } else { ExitCode::SUCCESS };
            if code == ExitCode::SUCCESS { sweep(seeds, from, scenario, all) } else { code }
        }
        Command::Statements { seeds, from } => statements(seeds, from, seeds == 1),
        Command::Calibrate { pairs, seed, only } => calibrate(pairs, seed, &only),
        Command::Replay { seed, scenario } => {
            let reports = chosen(scenario).into_iter().map(|scenario| show(draw(scenario, seed)));
            let bad = reports.filter(|report| !report.violations.is_empty()).count();
            if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}

fn run(args: &RunArgs) -> ExitCode {
    let report = show(args.options());
    let picture = args.picture();
    let files = [(picture.as_deref(), report.svg()), (args.out.as_deref(), report.json() + "\n")];
    for (path, text) in files {
        if let Some(path) = path
            && let Err(code) = write(path, &text)
        {
            return code;
        }
    }
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn write(path: &Path, text: &str) -> Result<(), ExitCode> {
    std::fs::write(path, text).map_err(|error| {
        eprintln!("error: cannot write {}: {error}", path.display());
        ExitCode::FAILURE
    })?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

fn chosen(scenario: Option<Scenario>) -> Vec<Scenario> {
    scenario.map_or(Scenario::ALL.to_vec(), |one| vec![one])
}

/// Standard output holds what is the same each time; how long it took goes to standard error.
fn show(options: Options) -> Report {
    println!("{options}");
    let begun = Instant::now();
    let report = World::new(options).run();
    let seconds = begun.elapsed().as_secs_f64();
    println!("{report}");
    println!("{}", report.json());
    let deeds = (report.counts.events + report.counts.frames) as f64;
    eprintln!("took {seconds:.2} s, {:.2} million events and frames a second", deeds / seconds / 1e6);
    report
}

fn sweep(seeds: u64, from: u64, scenario: Option<Scenario>, all: bool) -> ExitCode {
    let (mut runs, mut bad) = (0u64, 0u64);
    for seed in from..from.saturating_add(seeds) {
        for scenario in chosen(scenario) {
            let report = World::new(draw(scenario, seed)).run();
            runs += 1;
            let Some(first) = report.violations.first() else {
                continue;
            };
            bad += 1;
            if all {
                println!("{scenario} {seed}: {}: {}", first.check, first.what);
                continue;
            }
            println!(
                "{}\n{report}\nagain: weighlock-sim replay {seed} --scenario {scenario}",
                report.options
            );
            println!("{}", report.json());
            return ExitCode::FAILURE;
        }
    }
    println!(
        "{runs} runs from seed {from} on, {}",
        if bad == 0 { "no violation".into() } else { format!("{bad} violate an invariant") }
    );
    println!("{{\"schema_version\":2,\"runs\":{runs},\"from\":{from},\"violations\":{bad}}}");
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn calibrate(pairs: u64, seed: u64, only: &str) -> ExitCode {
    let calibration = calibrate::run(pairs, seed, only);
    println!("{calibration}");
    println!("{}", calibration.json());
    let is_broken = calibration.broken().next().is_some();
    if is_broken { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// With `show` all of each world is printed, else only of the first that violates a rule.
fn statements(seeds: u64, from: u64, show: bool) -> ExitCode {
    for seed in from..from.saturating_add(seeds) {
        let options = FoldOptions::draw(seed);
        if show {
            println!("{options}");
        }
        let report = fold::run(options);
        let bad = !report.violations.is_empty();
        if bad && !show {
            println!("{}", report.options);
        }
        if bad || show {
            println!("{report}");
            println!("{}", report.json());
        }
        if bad {
            eprintln!("again: weighlock-sim statements --from {seed}");
            return ExitCode::FAILURE;
        }
    }
    if !show {
        println!("{seeds} statement worlds from seed {from} on, no violation");
    }
    ExitCode::SUCCESS
}
