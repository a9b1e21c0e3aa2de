//! Lock files from disk, and what they say of a baseline.

use std::collections::BTreeMap;
use std::path::Path;

use weighlock_protocol::Artifact;
use weighlock_protocol::gate::Report;
use weighlock_protocol::lock::{LOCK_BYTES_MAX, Lock};

use super::report::Loaded;
use super::side::Side;
use crate::error::{Error, Result};

/// Where a project pins what it runs.
pub(crate) const LOCK_FILE: &str = "weighlock.lock";

/// Reads a lock file.
///
/// # Errors
/// Not there, or not one, with the line.
pub(crate) fn read(path: &Path) -> Result<Lock> {
    read_if_there(path)?.ok_or_else(|| {
        Error::invalid(format!("there is no lock file at {}", path.display()))
            .hint("`weighlock lock REF` makes one, --lock-file names another")
    })
}

/// As [`read`]; `None` if there is no such file.
///
/// # Errors
/// It is not a lock file, with the line.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<Lock>> {
    let shown = path.display();
    let size = match std::fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::invalid(format!("cannot read {shown}: {e}"))),
    };
    if size > LOCK_BYTES_MAX as u64 {
        return Err(Error::invalid(format!(
            "{shown} has {size} bytes; at most {LOCK_BYTES_MAX} are accepted"
        )));
    }
    let text =
        std::fs::read_to_string(path).map_err(|e| Error::invalid(format!("cannot read {shown}: {e}")))?;
    Lock::parse(&text).map(Some).map_err(|e| Error::invalid(format!("{shown}: {e}")))
}

/// What is pinned of an artifact for a hardware key, as the gate's baseline.
///
/// # Errors
/// Its reports cannot be written down.
pub(crate) fn baseline(lock: &Lock, name: &Artifact, hardware: &str) -> Result<Option<Side>> {
    let Some(package) = lock.find_on(name, hardware) else { return Ok(None) };
    let mut side = Side {
        label: format!("{}:{}", package.name, package.version),
        artifact: Some(package.name.clone()),
        digest: Some(package.digest),
        contract: Some(package.contract().clone()),
        files: Some(package.files.iter().map(|file| file.path.clone()).collect()),
        ..Side::default()
    };
    for target in package.targets.iter().filter(|t| t.host.hardware == hardware || t.host.hardware == "any") {
        let mut report = Report { artifact: Some(package.digest), ..target.report() };
        // What is pinned for any hardware says nothing of where it ran.
        report.host = report.host.filter(|host| host.hardware != "any");
        let loaded = Loaded { report, samples: BTreeMap::new(), source: None };
        side.add_report(loaded, Some(target.report_sha256))?;
    }
    Ok(Some(side))
}
