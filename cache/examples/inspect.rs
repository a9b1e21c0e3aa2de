//! Prints what an import of a path would take: `cargo run -p weighlock-cache --example inspect -- PATH`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use weighlock_cache::inspect::{Options, plan};

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: inspect PATH");
        return ExitCode::from(2);
    };
    let plan = match plan(Path::new(&path), &Options::default()) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut out = std::io::stdout().lock();
    let written = plan
        .files
        .iter()
        .try_for_each(|file| {
            let tensors = file.tensors.len();
            writeln!(out, "{:>14}  {:>5} tensors  {:?}  {}", file.size, tensors, file.kind, file.path)
        })
        .and_then(|()| plan.warnings.iter().try_for_each(|warning| writeln!(out, "warning: {warning}")))
        .and_then(|()| serde_json::to_writer_pretty(&mut out, &plan.contract).map_err(Into::into))
        .and_then(|()| writeln!(out));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
