//! Reports and samples from files, whatever harness wrote them, and the directory that evidence keeps of them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use weighlock_protocol::Sha256;
use weighlock_protocol::gate::report::REPORT_BYTES_MAX;
use weighlock_protocol::gate::samples::SAMPLES_BYTES_MAX;
use weighlock_protocol::gate::stats::Estimate;
use weighlock_protocol::gate::{Report, Samples, lm_eval, ours};

use crate::error::{Error, Result};

/// The report in its canonical form, in the directory of evidence.
pub(crate) const REPORT_FILE: &str = "report.json";
/// Its samples, one in a line.
pub(crate) const SAMPLES_FILE: &str = "samples.jsonl";
/// What the harness wrote, as it wrote it, where that is another format.
pub(crate) const SOURCE_FILE: &str = "results.json";
/// What a run under our eyes printed.
pub(crate) const LOG_FILE: &str = "log.txt";
/// Deepest directory below the one that is named in which reports are looked for: harnesses make one per model.
const DEPTH_MAX: usize = 3;
/// Most entries that are looked at for that.
const ENTRIES_MAX: usize = 10_000;

/// A report, ready to be weighed.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) report: Report,
    pub(crate) samples: BTreeMap<String, Samples>,
    /// What the harness wrote, where that is not our form.
    pub(crate) source: Option<Vec<u8>>,
}

impl Loaded {
    /// Reads a report file, or the one report below a directory, with the samples beside it or those that are named.
    ///
    /// # Errors
    /// [`crate::error::Kind::Invalid`]: no report or several, not one that is understood, samples that are not its own.
    pub(crate) fn read(path: &Path, samples: &[PathBuf]) -> Result<Self> {
        let file = if path.is_dir() { only_report(path)? } else { path.to_owned() };
        let bytes = bytes(&file, REPORT_BYTES_MAX as u64)?;
        let bad = |e: &dyn std::fmt::Display| Error::invalid(format!("{}: {e}", file.display()));
        if lm_eval::is_lm_eval(&bytes) {
            let named = if samples.is_empty() { samples_of_run(&file)? } else { samples.to_vec() };
            let mut files = Vec::with_capacity(named.len());
            let mut left = SAMPLES_BYTES_MAX;
            for path in named {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let bytes = self::bytes(&path, left)?;
                left -= bytes.len() as u64;
                files.push((name, bytes));
            }
            let (report, samples) = lm_eval::read(&bytes, &files).map_err(|e| bad(&e))?;
            return Ok(Self { report, samples, source: Some(bytes) }.with_errors());
        }
        let (mut report, mut all) = ours::read(&bytes).map_err(|e| bad(&e))?;
        let beside = file.with_file_name(SAMPLES_FILE);
        let named = match samples {
            [] if beside.is_file() => vec![beside],
            named => named.to_vec(),
        };
        for path in named {
            let bad = |e: &dyn std::fmt::Display| Error::invalid(format!("{}: {e}", path.display()));
            let more = ours::read_samples(&self::bytes(&path, SAMPLES_BYTES_MAX)?).map_err(|e| bad(&e))?;
            ours::attach(&mut report, &more).map_err(|e| bad(&e))?;
            if let Some(twice) = more.keys().find(|metric| all.contains_key(*metric)) {
                return Err(bad(&format_args!("samples of {twice} are there twice; give them once")));
            }
            all.extend(more);
        }
        Ok(Self { report, samples: all, source: None }.with_errors())
    }

    /// Standard errors from samples where the harness has none: who compares with this run later may not have those.
    fn with_errors(mut self) -> Self {
        for (name, metric) in self.report.metrics.iter_mut().filter(|(_, metric)| metric.stderr.is_none()) {
            let estimate = self.samples.get(name).and_then(|all| Estimate::of_samples(all, metric.scale));
            let stderr = estimate.map(|estimate| estimate.stderr(metric.scale));
            metric.stderr = stderr.filter(|stderr| stderr.is_finite());
        }
        self
    }

    /// The report's canonical bytes.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(&self.report).map_err(Error::internal)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// SHA-256 of these.
    pub(crate) fn digest(&self) -> Result<Sha256> {
        Ok(Sha256::of(&self.bytes()?))
    }

    /// Writes what evidence keeps into an empty directory.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let fail = |e: std::io::Error| Error::internal(format!("cannot write {}: {e}", dir.display()));
        fs::write(dir.join(REPORT_FILE), self.bytes()?).map_err(fail)?;
        if let Some(source) = &self.source {
            fs::write(dir.join(SOURCE_FILE), source).map_err(fail)?;
        }
        if self.samples.is_empty() {
            return Ok(());
        }
        self.write_samples(&dir.join(SAMPLES_FILE))
    }

    /// Writes the samples as [`SAMPLES_FILE`] holds them.
    pub(crate) fn write_samples(&self, path: &Path) -> Result<()> {
        let fail = |e: std::io::Error| Error::invalid(format!("cannot write {}: {e}", path.display()));
        let mut out = std::io::BufWriter::new(File::create(path).map_err(fail)?);
        for (metric, samples) in &self.samples {
            for sample in samples.iter() {
                let mut line = serde_json::to_value(sample).map_err(Error::internal)?;
                line["metric"] = metric.as_str().into();
                writeln!(out, "{line}").map_err(fail)?;
            }
        }
        out.flush().map_err(fail)
    }
}

fn bytes(path: &Path, most: u64) -> Result<Vec<u8>> {
    let shown = path.display();
    let fail = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Error::invalid(format!("there is no report at {shown}")).hint(
            "it is a report, the results of lm-evaluation-harness, or a directory that holds one of them",
        ),
        _ => Error::invalid(format!("cannot read {shown}: {e}")),
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(fail)?;
    file.take(most + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > most {
        return Err(Error::invalid(format!("{shown} has more than {most} bytes")));
    }
    Ok(bytes)
}

/// Whether a report lies in a directory, or several.
pub(crate) fn lies_in(dir: &Path) -> bool {
    reports_in(dir).is_ok_and(|found| !found.is_empty())
}

/// The reports below a directory: ours by its name, else the harness's results.
fn reports_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let ours = dir.join(REPORT_FILE);
    if ours.is_file() {
        return Ok(vec![ours]);
    }
    let is_results = |name: &str| {
        let stem = name.strip_suffix(".json").and_then(|name| name.strip_prefix("results"));
        stem.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    let mut found = Vec::new();
    for (n, entry) in walkdir::WalkDir::new(dir).max_depth(DEPTH_MAX).into_iter().enumerate() {
        check_count(n, dir)?;
        let entry = entry.map_err(|e| Error::invalid(format!("cannot read {}: {e}", dir.display())))?;
        if entry.file_type().is_file() && entry.file_name().to_str().is_some_and(is_results) {
            found.push(entry.into_path());
        }
    }
    found.sort();
    Ok(found)
}

/// A part of them might be the wrong one.
fn check_count(n: usize, dir: &Path) -> Result<()> {
    if n < ENTRIES_MAX {
        return Ok(());
    }
    Err(Error::invalid(format!("{} holds more than {ENTRIES_MAX} files", dir.display()))
        .hint("give each run a directory of its own"))
}

fn only_report(dir: &Path) -> Result<PathBuf> {
    let found = reports_in(dir)?;
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Error::invalid(format!("no report in {}", dir.display()))
            .hint("it should hold report.json, or the results_*.json of lm-evaluation-harness")),
        [first, .., last] => Err(Error::invalid(format!(
            "{} holds {} reports, from {} to {}",
            dir.display(),
            found.len(),
            first.display(),
            last.display()
        ))
        .hint("name the one that is meant")),
    }
}

/// The samples that one run of the harness wrote beside its results: their names carry the same time.
fn samples_of_run(results: &Path) -> Result<Vec<PathBuf>> {
    let name = results.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let time = name.strip_prefix("results").and_then(|name| name.strip_suffix(".json"));
    let Some(time) = time.filter(|time| time.starts_with('_')) else { return Ok(Vec::new()) };
    let ending = format!("{time}.jsonl");
    let dir = results.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fail = |e: std::io::Error| Error::invalid(format!("cannot read {}: {e}", dir.display()));
    let mut found = Vec::new();
    for (n, entry) in fs::read_dir(dir).map_err(fail)?.enumerate() {
        check_count(n, dir)?;
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("samples_") && name.ends_with(&ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_evidence_keeps_reads_as_what_was_given() {
        let dir = tempfile::tempdir().expect("tempdir");
        let given = dir.path().join("given.json");
        let report = r#"{"metrics": {"eval_loss": {"value": 1.5,
            "samples": [{"id": "a", "value": 1.0, "cluster": "x"}, {"id": "b", "value": 2.0}]}, "acc": 0.5}}"#;
        fs::write(&given, report).expect("written");
        let loaded = Loaded::read(&given, &[]).expect("read");
        assert_eq!(loaded.samples["eval_loss"].len(), 2);
        let kept = dir.path().join("kept");
        fs::create_dir(&kept).expect("a directory");
        loaded.write(&kept).expect("written");
        let again = Loaded::read(&kept, &[]).expect("read again");
        assert_eq!((again.report, again.samples), (loaded.report, loaded.samples));
    }

    #[test]
    fn a_directory_must_hold_one_report() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert!(Loaded::read(dir.path(), &[]).is_err_and(|e| e.message.contains("no report")));
        for name in ["results_1.json", "results_2.json", "results_not.txt"] {
            fs::write(dir.path().join(name), "{}").expect("written");
        }
        assert!(Loaded::read(dir.path(), &[]).is_err_and(|e| e.message.contains("holds 2 reports")));
        assert!(
            Loaded::read(&dir.path().join("none.json"), &[])
                .is_err_and(|e| e.message.contains("there is no"))
        );
    }
}
