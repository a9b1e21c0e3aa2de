//! Lock files from disk, and what they say of a baseline.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use weighlock_protocol::Artifact;
use weighlock_protocol::gate::{Metric, Report};
use weighlock_protocol::lock::{LOCK_BYTES_MAX, Lock, Package};

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

/// What is pinned of an artifact for a hardware key, as the gate's baseline. Where the key is not known, what is pinned
/// for one kind of hardware only.
///
/// # Errors
/// It is pinned, but not for this hardware, which must not read as if nothing were pinned.
pub(crate) fn baseline(lock: &Lock, name: &Artifact, hardware: Option<&str>) -> Result<Option<Side>> {
    let keys: BTreeSet<&str> = lock.find(name).flat_map(Package::hardware).collect();
    let hardware = match (hardware, keys.len()) {
        (Some(hardware), _) => hardware,
        (None, 1) => keys.first().copied().unwrap_or("any"),
        (None, _) => "any",
    };
    let Some(package) = lock.find_on(name, hardware) else {
        if keys.is_empty() {
            return Ok(None);
        }
        let keys: Vec<&str> = keys.into_iter().collect();
        return Err(Error::invalid(format!(
            "{name} is pinned for {}, and this is weighed for {hardware}",
            keys.join(", ")
        ))
        .hint("say where the candidate ran with --ran-on, or which pin is meant with --hardware"));
    };
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

/// What is pinned, with reports that carry what the lock file does not: samples. They must be those that are pinned.
///
/// # Errors
/// A report that says other than what is pinned.
pub(crate) fn with_reports(pinned: Side, named: Side) -> Result<Side> {
    let known: BTreeMap<&String, &Metric> =
        pinned.reports().flat_map(|loaded| loaded.report.metrics.iter()).collect();
    for (name, metric) in named.reports().flat_map(|loaded| loaded.report.metrics.iter()) {
        let Some(expected) = known.get(name) else { continue };
        if expected.value != metric.value || expected.samples.is_some() && expected.samples != metric.samples
        {
            return Err(Error::invalid(format!(
                "--baseline-report is not the report that is pinned for {}: {name} is {} there, pinned is {}",
                pinned.label, metric.value, expected.value
            ))
            .hint("give the one that was locked, or name another baseline with --against"));
        }
    }
    Ok(Side { reports: named.reports, ..pinned })
}
