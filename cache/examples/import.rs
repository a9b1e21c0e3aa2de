//! Times the import of a path into a store: `import PATH STORE [--no-reflink]`. Prints rates in 10^6 bytes per second.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use weighlock_cache::{Commit, ImportOptions, Store, StoreConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, store, rest @ ..] = args.as_slice() else {
        return Err("usage: import PATH STORE [--no-reflink]".into());
    };
    let options = ImportOptions { reflink: !rest.iter().any(|arg| arg == "--no-reflink") };
    let plan =
        weighlock_cache::inspect::plan(Path::new(path), &weighlock_cache::inspect::Options::default())?;
    let store = Store::open(store, StoreConfig::default())?;
    let start = Instant::now();
    let staged = store.import(&plan, &options, &|_| {}, &AtomicBool::new(false))?;
    let hashed = start.elapsed();
    let reflinked = staged.reflinked_files();
    let digest = staged.manifest().digest();
    store.commit(Commit { staged: Some(staged), ..Commit::default() })?;
    let total = start.elapsed();
    let rate = |time: std::time::Duration| plan.total_bytes() as f64 / 1e6 / time.as_secs_f64();
    println!("{digest}");
    println!(
        "{} files, {} bytes, {reflinked} reflinked: staged and synced in {:.3} s ({:.0} MB/s), committed in {:.3} s ({:.0} MB/s)",
        plan.files.len(),
        plan.total_bytes(),
        hashed.as_secs_f64(),
        rate(hashed),
        total.as_secs_f64(),
        rate(total),
    );
    Ok(())
}
