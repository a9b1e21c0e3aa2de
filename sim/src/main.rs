//! The rehearsal's command line: one run, a sweep over seeds, or one seed of a sweep again.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
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
    /// Runs one scenario and prints a table; the last line is JSON.
    Run {
        #[arg(long, value_enum, default_value = "flash-crowd")]
        scenario: Scenario,
        /// Hosts that fetch.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=20_000))]
        hosts: u32,
        /// Size of the artifact in GiB; fractions are fine.
        #[arg(long, default_value_t = 1.0, value_parser = gib)]
        gib: f64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Uploads that a host serves at a time.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        uploads: u32,
        /// Connections of each host, about.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=1_000))]
        neighbours: u32,
        /// Hosts that serve wrong bytes, where the scenario has any.
        #[arg(long, default_value_t = 1)]
        liars: u16,
        /// Transfers cut at a random point, of a thousand.
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000))]
        loss_permille: u32,
        /// Crashes with a restart.
        #[arg(long, default_value_t = 0)]
        crashes: u16,
        /// Writes the JSON to this file too.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Runs small hostile worlds, one per seed and scenario, and stops at the first that violates an invariant.
    Sweep {
        #[arg(long, default_value_t = 50)]
        seeds: u64,
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// Only this scenario.
        #[arg(long, value_enum)]
        scenario: Option<Scenario>,
    },
    /// Runs one seed of a sweep again and prints everything.
    Replay {
        seed: u64,
        /// Only this scenario.
        #[arg(long, value_enum)]
        scenario: Option<Scenario>,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run {
            scenario,
            hosts,
            gib,
            seed,
            uploads,
            neighbours,
            liars,
            loss_permille,
            crashes,
            out,
        } => {
            let bytes = (gib * f64::from(1 << 30)) as u64;
            let mut options = Options::flash_crowd(hosts as usize, bytes, seed);
            options.uploads_max = uploads as usize;
            options.neighbours = neighbours as usize;
            options.liars = usize::from(liars);
            options.loss_permille = loss_permille;
            options.crashes = usize::from(crashes);
            scenario.apply(&mut options);
            let report = show(options);
            if let Some(path) = out
                && let Err(error) = std::fs::write(&path, report.json() + "\n")
            {
                eprintln!("error: cannot write {}: {error}", path.display());
                return ExitCode::FAILURE;
            }
            verdict(&report)
        }
        Command::Sweep { seeds, from, scenario } => sweep(seeds, from, scenario),
        Command::Replay { seed, scenario } => {
            let mut code = ExitCode::SUCCESS;
            for scenario in chosen(scenario) {
                let report = show(Options::draw(scenario, seed));
                if !report.violations.is_empty() {
                    code = ExitCode::FAILURE;
                }
            }
            code
        }
    }
}

fn chosen(scenario: Option<Scenario>) -> Vec<Scenario> {
    scenario.map_or(Scenario::ALL.to_vec(), |one| vec![one])
}

fn gib(text: &str) -> Result<f64, String> {
    let gib: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    if (0.000_1..=100_000.0).contains(&gib) { Ok(gib) } else { Err("between 0.0001 and 100000".into()) }
}

fn show(options: Options) -> Report {
    println!("{options}");
    let report = World::new(options).run();
    println!("{report}");
    println!("{}", report.json());
    report
}

fn verdict(report: &Report) -> ExitCode {
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn sweep(seeds: u64, from: u64, scenario: Option<Scenario>) -> ExitCode {
    let mut runs = 0u64;
    for seed in from..from.saturating_add(seeds) {
        for scenario in chosen(scenario) {
            let options = Options::draw(scenario, seed);
            let text = options.to_string();
            let report = World::new(options).run();
            runs += 1;
            if !report.violations.is_empty() {
                println!("{text}\n{report}\nagain: weighlock-sim replay {seed} --scenario {scenario}");
                println!("{}", report.json());
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{runs} runs from seed {from} on, no violation");
    println!("{{\"schema_version\":1,\"runs\":{runs},\"from\":{from},\"violations\":0}}");
    ExitCode::SUCCESS
}
