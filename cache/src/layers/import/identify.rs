//! What a path would become as an artifact, without a store: its manifest and contract, from one read of its files.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use weighlock_protocol::manifest::{Contract, Manifest};

use super::{ImportProgress, Run};
use crate::config::StoreConfig;
use crate::error::StoreError;
use crate::layers::describe;
use crate::plan::Plan;

/// What a path is.
#[derive(Debug, Clone)]
pub struct Identified {
    /// The manifest that an import of it makes, byte for byte.
    pub manifest: Manifest,
    /// Its contract, tensors included.
    pub contract: Contract,
}

/// Reads the files of a plan once, hashes them as an import does, and writes nothing.
///
/// # Errors
/// A file that changed while it was read or since it was inspected, cancelled, too many tensors or layers for a
/// manifest, an io error.
pub fn identify(
    plan: &Plan,
    config: &StoreConfig,
    progress: &(dyn Fn(ImportProgress) + Sync),
    cancel: &AtomicBool,
) -> Result<Identified, StoreError> {
    describe::check(plan)?;
    let run = Run {
        dir: None,
        room: None,
        block_bytes: config.import_block_bytes.max(64 << 10).next_power_of_two(),
        reflink: AtomicBool::new(false),
        sync_each: false,
        cores: super::cores(),
        at_work: AtomicUsize::new(0),
        cancel,
        progress,
        done_bytes: AtomicU64::new(0),
        total_bytes: plan.total_bytes(),
        done_files: AtomicUsize::new(0),
        total_files: plan.files.len(),
    };
    let described = run.describe(plan, config.import_files_max.max(1))?;
    run.report(false);
    Ok(Identified { manifest: described.manifest, contract: described.contract })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect;
    use crate::{ImportOptions, Store};

    #[test]
    fn a_path_has_the_digest_that_its_import_gets() {
        let dir = tempfile::tempdir().expect("tempdir");
        let source = dir.path().join("source");
        std::fs::create_dir(&source).expect("a directory");
        // One of many blocks, one of one, one empty, two alike.
        std::fs::write(source.join("large.bin"), vec![7; 9 << 20]).expect("written");
        for name in ["small.txt", "again.txt"] {
            std::fs::write(source.join(name), "hello").expect("written");
        }
        std::fs::write(source.join("empty"), "").expect("written");
        let plan = inspect::plan(&source, &inspect::Options::default()).expect("planned");
        let cancel = AtomicBool::new(false);
        let known = identify(&plan, &StoreConfig::default(), &|_| {}, &cancel).expect("identified");
        let store = Store::open(dir.path().join("store"), StoreConfig::default()).expect("opened");
        let staged = store.import(&plan, &ImportOptions::default(), &|_| {}, &cancel).expect("imported");
        assert_eq!(known.manifest, *staged.manifest());
        assert_eq!(known.contract, *staged.contract());
    }
}
