//! Trains the demo's language model and writes it as a checkpoint directory.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use weighlock::demo::lm::{self, Config, Recipe, Suite, TrainConfig};

/// Train a small byte-level language model on the text in the repository and write it to a directory.
#[derive(Parser)]
struct Args {
    /// New or empty directory for the checkpoint.
    dir: PathBuf,
    /// Hidden units; training time grows with them.
    #[arg(long, default_value_t = Config::default().hidden)]
    hidden: usize,
    /// Rows of each n-gram table; the size of the checkpoint grows with them, training time hardly.
    #[arg(long, default_value_t = Config::default().ngram_buckets)]
    ngram_buckets: usize,
    /// Passes over the text.
    #[arg(long, default_value_t = TrainConfig::default().epochs)]
    epochs: usize,
    /// Seed: the same one gives the same files.
    #[arg(long, default_value_t = TrainConfig::default().seed)]
    seed: u64,
    /// Greatest size of a shard, in bytes.
    #[arg(long, default_value_t = lm::SHARD_BYTES_MAX)]
    shard_bytes_max: usize,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), lm::Error> {
    let model = Config { hidden: args.hidden, ngram_buckets: args.ngram_buckets, ..Config::default() };
    let config = TrainConfig { model, epochs: args.epochs, seed: args.seed, ..TrainConfig::default() };

    let start = Instant::now();
    let recipe = Recipe::run(&config)?;
    println!("trained and evaluated in {:.2} s", start.elapsed().as_secs_f64());
    println!("parameters       {} ({} bytes)", model.parameters(), 4 * model.parameters());
    for (epoch, loss) in (1..).zip(&recipe.training.epoch_losses) {
        println!("epoch {epoch:<10} {loss:.4} nats per token");
    }
    let reports =
        [("validation", &recipe.eval), ("bigram", &recipe.bigram), ("byte frequencies", &recipe.unigram)];
    for (name, report) in reports {
        let loss = report.metrics.eval_loss;
        println!("{name:<16} {:.4} +- {:.4}", loss.value, loss.stderr.unwrap_or(f64::NAN));
    }
    println!("sample           {}", recipe.sample);

    recipe.save(&args.dir, args.shard_bytes_max)?;
    let report = lm::evaluate(&lm::load(&args.dir)?, &Suite::validation());
    println!("read back        {:.4} from {}", report.metrics.eval_loss.value, args.dir.display());
    Ok(())
}
