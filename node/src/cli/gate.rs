//! `weighlock gate CANDIDATE`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use weighlock_protocol::audit::Door;
use weighlock_protocol::gate::{Input, Verdict, judge, junit};
use weighlock_protocol::lock::Lock;
use weighlock_protocol::statement::Keypair;
use weighlock_protocol::{Artifact, ClusterId, ManifestDigest, Reference};

use super::eval::RunLimits;
use super::evidence::About;
use super::{Context, absolute, sides, sign};
use crate::error::{Error, Result};
use crate::local::message::{AdminRequest, Viewed};
use crate::weigh::key;
use crate::weigh::lock::{self, LOCK_FILE, read_if_there};
use crate::weigh::policy::{POLICY_FILE, read};
use crate::weigh::report::{Loaded, SAMPLES_FILE};
use crate::weigh::side::Side;
use crate::weigh::verdict::{About as Subject, sign, test_result};

const AFTER_HELP: &str = "\
CANDIDATE is a directory or file, which needs no daemon, or a reference with evidence in the cluster.
The baseline is what --against or --baseline-report name, else what weighlock.lock pins for the same
artifact. Without a baseline only the absolute bounds of the policy count.

A verdict that --out signs names the SHA-256 of the whole verdict, and of the reports that it rests on.
To see that a file is that verdict, compare `sha256sum FILE` of what --verdict-out wrote with what
`weighlock statement show` says of the signed one.

Exit codes: 0 pass, 1 fail, 2 wrong usage, 3 no evidence; 4 to 7 as for all commands.";

/// Weigh a candidate against what runs now, under a policy.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Gate {
    /// Path, ns/name:tag or ns/name@sha256:...
    #[arg(required_unless_present = "candidate_manifest")]
    candidate: Option<String>,
    /// What `inspect --json` says of the candidate, where its weights are not here
    #[arg(long, value_name = "FILE", conflicts_with = "candidate")]
    candidate_manifest: Option<PathBuf>,
    /// A report about the candidate: our JSON, lm-evaluation-harness results, or their directory (may be repeated)
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
    /// Samples of the report, where they do not lie beside it (may be repeated)
    #[arg(long, value_name = "FILE", requires = "report")]
    samples: Vec<PathBuf>,
    /// Run this evaluator on the candidate, shut in as `eval` does, instead of reading a report
    #[arg(long, value_name = "CMD", conflicts_with_all = ["report", "candidate_manifest"])]
    run: Option<String>,
    /// Keep the evaluator's report here, its samples beside it in samples.jsonl
    #[arg(long, value_name = "FILE", requires = "run")]
    report_out: Option<PathBuf>,
    #[command(flatten)]
    about: About,
    /// What it is weighed against: path or reference
    #[arg(long, value_name = "REF")]
    against: Option<String>,
    /// A report about the baseline (may be repeated)
    #[arg(long, value_name = "FILE")]
    baseline_report: Vec<PathBuf>,
    /// What drift is counted from: path or reference
    #[arg(long, value_name = "REF")]
    pinned: Option<String>,
    /// A report about that (may be repeated)
    #[arg(long, value_name = "FILE")]
    pinned_report: Vec<PathBuf>,
    /// What is pinned: the baseline where no other is named [default: weighlock.lock, if it is there]
    #[arg(long, value_name = "FILE")]
    lock_file: Option<PathBuf>,
    /// The policy
    #[arg(long, value_name = "FILE", default_value = POLICY_FILE)]
    policy: PathBuf,
    /// Hardware key, where there is evidence from several kinds
    #[arg(long, value_name = "KEY")]
    hardware: Option<String>,
    /// The artifact's name, ns/name, where the candidate is a path
    #[arg(long, value_name = "NAME")]
    name: Option<Artifact>,
    /// Write the verdict here, signed for the cluster; `weighlock statement import` brings it in
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write it here whole, as JSON: the bytes whose SHA-256 a signed verdict names
    #[arg(long, value_name = "FILE")]
    verdict_out: Option<PathBuf>,
    /// Write it here as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write it here as in-toto test result, signed where there is a key
    #[arg(long, value_name = "FILE")]
    test_result: Option<PathBuf>,
    /// The evaluator's key, more where the root asks for more [default: WEIGHLOCK_SIGNING_KEY, else the admin key]
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// The cluster that --out signs for [default: that of the daemon, else of the lock file]
    #[arg(long, value_name = "ID")]
    cluster: Option<ClusterId>,
    // Last, as its heading holds for all that follows.
    #[command(flatten)]
    limits: RunLimits,
}

impl Gate {
    /// Exit codes tell the verdict.
    pub(super) fn run(self, context: &Context) -> Result<ExitCode> {
        // First, as it costs nothing: nobody wants to hear it after an hour of hashing.
        let policy = read(&self.policy)?;
        let lock = match &self.lock_file {
            Some(file) => Some(lock::read(file)?),
            None => read_if_there(Path::new(LOCK_FILE))?,
        };
        self.check_name(lock.as_ref())?;
        self.check_places()?;
        let signer = self.signer(context, lock.as_ref())?;
        let mut candidate = self.candidate(context, lock.as_ref())?;
        self.add_reports(&mut candidate, &self.report, &self.samples, Some(context))?;
        if let (Some(command), Some(path)) = (&self.run, &self.candidate) {
            let place = self.place(context, path, candidate.digest)?;
            if let Some(said) = &candidate.contract {
                sides::check_contract(&place, said)?;
            }
            let mut ran = self.limits.run(context, command, &place, &self.key)?;
            candidate.check_unchanged()?;
            self.about.fill(&mut ran.loaded, context)?;
            candidate.add_report(ran.loaded, None)?;
            // Before anything can go wrong: it may have taken hours.
            if let (Some(path), Some(loaded)) = (&self.report_out, candidate.reports().last()) {
                keep_report(path, loaded)?;
            }
            if !context.output.is_quiet() {
                eprintln!("{}", ran.sandbox);
            }
            candidate.sandbox = ran.sandbox;
        }
        self.check_hardware(&candidate)?;
        let baseline = match self.other(context, self.against.as_deref(), &self.baseline_report)? {
            // A report says nothing of the contract; what is pinned does.
            Some(named) if self.against.is_none() => match self.locked(&candidate, lock.as_ref())? {
                Some(pinned) => Some(lock::with_reports(pinned, named)?),
                None => Some(named),
            },
            Some(named) => Some(named),
            None => self.locked(&candidate, lock.as_ref())?,
        };
        let pinned = self.other(context, self.pinned.as_deref(), &self.pinned_report)?;
        let verdict = judge(&Input {
            policy: &policy,
            candidate: candidate.evidence(),
            baseline: baseline.as_ref().map(Side::evidence),
            pinned: pinned.as_ref().map(Side::evidence),
            files: candidate.files.as_deref(),
        });
        self.write(&verdict, &candidate, baseline.as_ref(), pinned.as_ref(), signer.as_ref())?;
        context.output.print(&verdict, |verdict| format!("{verdict}\n"))?;
        Ok(ExitCode::from(verdict.outcome.exit_code()))
    }

    /// Where the candidate's files lie.
    fn place(&self, context: &Context, text: &str, digest: Option<ManifestDigest>) -> Result<PathBuf> {
        if Path::new(text).exists() {
            return absolute(PathBuf::from(text));
        }
        // A candidate is not promoted yet: its evaluator may look at it.
        let reference: Reference = text.parse()?;
        let digest = digest.ok_or_else(|| Error::internal("the candidate has no digest"))?;
        let reference = sides::exactly(&reference, digest);
        let key = sign::key(context, self.key.first().map(PathBuf::as_path))?;
        let purpose = sign::to_evaluate(context, &reference, &key)?;
        let viewed: Viewed = context.ask(&AdminRequest::View {
            reference: reference.to_string(),
            purpose,
            door: Door::Eval,
        })?;
        Ok(viewed.path)
    }

    /// What the lock file pins of the candidate's artifact.
    fn locked(&self, candidate: &Side, lock: Option<&Lock>) -> Result<Option<Side>> {
        let Some(lock) = lock.filter(|lock| !lock.packages().is_empty()) else { return Ok(None) };
        let Some(artifact) = &candidate.artifact else {
            // Else what is pinned would not be held against it, without a word.
            return Err(Error::invalid(format!(
                "several artifacts are pinned, and {} may be any",
                candidate.label
            ))
            .hint("say which with --name ns/name"));
        };
        lock::baseline(lock, artifact, self.hardware.as_deref().or(candidate.hardware()))
    }

    /// A verdict is for one kind of hardware.
    fn check_hardware(&self, candidate: &Side) -> Result<()> {
        let named = candidate.reports().filter_map(|loaded| loaded.report.host.as_ref());
        let mut keys: BTreeSet<&str> = named.map(|host| host.hardware.as_str()).collect();
        keys.extend(self.hardware.as_deref().filter(|_| !keys.is_empty()));
        if keys.len() > 1 {
            let keys: Vec<&str> = keys.into_iter().collect();
            return Err(Error::invalid(format!("the candidate's reports are from {}", keys.join(", ")))
                .hint("weigh it for one kind of hardware at a time"));
        }
        Ok(())
    }

    /// Asked first: nobody wants to hear it after hours of evaluation.
    fn check_name(&self, lock: Option<&Lock>) -> Result<()> {
        let referenced = self.candidate.as_ref().is_some_and(|text| {
            !Path::new(text).exists() && text.parse::<weighlock_protocol::Reference>().is_ok()
        });
        let signs = self.out.is_some() || self.test_result.is_some();
        if signs && !referenced && self.name.is_none() && lock.and_then(only_name).is_none() {
            return Err(Error::invalid("what the candidate is called is not known")
                .hint("name it with --name ns/name"));
        }
        Ok(())
    }

    /// Asked first, too.
    fn check_places(&self) -> Result<()> {
        let files = [&self.report_out, &self.out, &self.verdict_out, &self.junit, &self.test_result];
        for file in files.into_iter().flatten() {
            let dir = parent(file);
            if !dir.is_dir() {
                return Err(Error::invalid(format!(
                    "cannot write {}: there is no directory {}",
                    file.display(),
                    dir.display()
                ))
                .hint("make it first"));
            }
        }
        Ok(())
    }

    fn candidate(&self, context: &Context, lock: Option<&Lock>) -> Result<Side> {
        let mut side = match (&self.candidate, &self.candidate_manifest) {
            (Some(text), _) => {
                // Reports that are named take the place of those that the cluster has.
                let stored = self.report.is_empty() && self.run.is_none();
                sides::of(context, text, self.hardware.as_deref().filter(|_| stored), stored)?
            }
            (None, Some(file)) => Side::of_manifest_file(file)?,
            (None, None) => return Err(Error::invalid("there is no candidate")),
        };
        if let Some(name) = &self.name {
            if side.artifact.as_ref().is_some_and(|artifact| artifact != name) {
                return Err(Error::invalid(format!("{} is not {name}", side.label)));
            }
            side.artifact = Some(name.clone());
        }
        if side.artifact.is_none() {
            side.artifact = lock.and_then(only_name).cloned();
        }
        Ok(side)
    }

    fn other(&self, context: &Context, named: Option<&str>, reports: &[PathBuf]) -> Result<Option<Side>> {
        let mut side = match named {
            Some(text) => sides::of(context, text, self.hardware.as_deref(), reports.is_empty())?,
            None if reports.is_empty() => return Ok(None),
            None => Side { label: reports[0].display().to_string(), ..Side::default() },
        };
        self.add_reports(&mut side, reports, &[], None)?;
        Ok(Some(side))
    }

    /// What the command line says of suite and host is about the candidate's reports.
    fn add_reports(
        &self,
        side: &mut Side,
        files: &[PathBuf],
        samples: &[PathBuf],
        about: Option<&Context>,
    ) -> Result<()> {
        for file in files {
            let mut loaded = Loaded::read(file, samples)?;
            if let Some(context) = about {
                if loaded.report.artifact.is_none() && !context.output.is_quiet() {
                    eprintln!(
                        "warning: {} does not say what it is about; it is taken to be about {}",
                        file.display(),
                        side.label
                    );
                }
                self.about.fill(&mut loaded, context)?;
            } else if loaded.report.suite.is_none() {
                self.about.fill_suite(&mut loaded)?;
            }
            side.add_report(loaded, None)?;
        }
        Ok(())
    }

    /// Who signs, for which cluster, if anything is to be signed.
    fn signer(&self, context: &Context, lock: Option<&Lock>) -> Result<Option<Signer>> {
        if self.out.is_none() && self.test_result.is_none() {
            return Ok(None);
        }
        let cluster = match self.cluster {
            Some(cluster) => Some(cluster),
            None if context.daemon_runs() => Some(context.cluster()?),
            None => lock.and_then(|lock| lock.cluster),
        };
        if self.out.is_none() {
            // A test result may go unsigned.
            let named = self.key.iter().map(|path| crate::keys::load(path)).collect::<Result<Vec<_>>>()?;
            let keys = if named.is_empty() { key::from_env()?.into_iter().collect() } else { named };
            return Ok(Some(Signer { keys, cluster }));
        }
        if cluster.is_none() {
            return Err(Error::invalid("--out signs for a cluster, and no daemon tells which")
                .hint("name it with --cluster (`weighlock status` on a member shows it), or let the lock file name it"));
        }
        Ok(Some(Signer { keys: key::evaluators(&self.key, &context.dirs, cluster.as_ref())?, cluster }))
    }

    fn write(
        &self,
        verdict: &Verdict,
        candidate: &Side,
        baseline: Option<&Side>,
        pinned: Option<&Side>,
        signer: Option<&Signer>,
    ) -> Result<()> {
        if let Some(path) = &self.verdict_out {
            write(path, verdict.to_json().as_bytes())?;
        }
        if let Some(path) = &self.junit {
            write(path, junit::junit(verdict).as_bytes())?;
        }
        if self.out.is_none() && self.test_result.is_none() {
            return Ok(());
        }
        let (Some(artifact), Some(manifest)) = (&candidate.artifact, candidate.digest) else {
            return Err(Error::invalid(format!("what {} is called is not known", candidate.label))
                .hint("name it with --name ns/name"));
        };
        let about = Subject { artifact, manifest, candidate, baseline, pinned };
        let keys: Vec<&Keypair> = signer.iter().flat_map(|signer| &signer.keys).collect();
        if let (Some(path), Some(cluster)) = (&self.out, signer.and_then(|signer| signer.cluster)) {
            write(path, &sign(verdict, &about, cluster, &keys)?.to_json())?;
        }
        if let Some(path) = &self.test_result {
            write(path, test_result(verdict, &about, &keys)?.as_bytes())?;
        }
        Ok(())
    }
}

/// Who signs a verdict, and for whom.
struct Signer {
    /// None where a test result goes unsigned.
    keys: Vec<Keypair>,
    cluster: Option<ClusterId>,
}

/// A project that pins one artifact means that one.
fn only_name(lock: &Lock) -> Option<&Artifact> {
    let first = &lock.packages().first()?.name;
    lock.packages().iter().all(|package| package.name == *first).then_some(first)
}

/// The report that the verdict names by its digest, and its samples where `--report` looks for them.
fn keep_report(path: &Path, loaded: &Loaded) -> Result<()> {
    write(path, &loaded.bytes()?)?;
    if !loaded.samples.is_empty() {
        loaded.write_samples(&path.with_file_name(SAMPLES_FILE))?;
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whole or not at all; but what is no plain file, such as `/dev/stdout`, is written to and stays.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = |e: std::io::Error| Error::invalid(format!("cannot write {}: {e}", path.display()));
    // What is printed goes to the same place, which may be a file.
    match path.to_str() {
        Some("/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1") => {
            return std::io::Write::write_all(&mut std::io::stdout(), bytes).map_err(fail);
        }
        Some("/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2") => {
            return std::io::Write::write_all(&mut std::io::stderr(), bytes).map_err(fail);
        }
        _ => {}
    }
    let is_special = ["/dev", "/proc"].iter().any(|of| path.starts_with(of));
    if is_special || std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        let mut file = std::fs::OpenOptions::new().append(true).open(path).map_err(fail)?;
        return std::io::Write::write_all(&mut file, bytes).map_err(fail);
    }
    // A link stays one, too.
    let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut file = tempfile::NamedTempFile::new_in(parent(path)).map_err(fail)?;
    std::io::Write::write_all(&mut file, bytes).map_err(fail)?;
    // As any other new file has it, not as a secret.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).map_err(fail)?;
    file.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_plain_file_is_written_to_and_stays() {
        let dir = tempfile::tempdir().expect("tempdir");
        write(Path::new("/dev/null"), b"gone").expect("written");
        let is_device = |path: &str| {
            let kind = std::fs::symlink_metadata(path).expect("there").file_type();
            std::os::unix::fs::FileTypeExt::is_char_device(&kind)
        };
        assert!(is_device("/dev/null"));
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "old").expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        write(&link, b"new").expect("written");
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).expect("read"), b"new");
        assert!(write(dir.path(), b"x").is_err(), "a directory");
    }

    #[test]
    fn a_report_that_is_kept_reads_as_the_one_that_was_weighed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let given = dir.path().join("given.json");
        let report = r#"{"metrics": {"eval_loss": {"value": 1.5,
            "samples": [{"id": "a", "value": 1.0}, {"id": "b", "value": 2.0, "cluster": "x"}]}}}"#;
        std::fs::write(&given, report).expect("written");
        let weighed = Loaded::read(&given, &[]).expect("read");
        let kept = dir.path().join("kept.json");
        keep_report(&kept, &weighed).expect("kept");
        let again = Loaded::read(&kept, &[]).expect("read again");
        assert_eq!(again.digest().expect("digest"), weighed.digest().expect("digest"));
        assert_eq!(
            weighlock_protocol::Sha256::of(&std::fs::read(&kept).expect("bytes")),
            weighed.digest().expect("digest")
        );
        assert_eq!(again.samples, weighed.samples);
    }
}
