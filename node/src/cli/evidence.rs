//! `weighlock evidence REF` and `weighlock evidence add REF FILE`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use weighlock_protocol::gate::Outcome;
use weighlock_protocol::gate::report::{HostProfile, Metric};
use weighlock_protocol::statement::weighed::LINES_MAX;
use weighlock_protocol::statement::{Evaluate, Findings, Keypair, Kind, Statement};
use weighlock_protocol::{ManifestDigest, Reference, Sha256, Stage, StatementId, UnixTime};

use super::output::{bytes, counted, table};
use super::{Context, absolute, sides};
use crate::cluster::now;
use crate::error::{Error, Result};
use crate::hardware;
use crate::local::message::{AdminRequest, KeptEvidence, Submitted, Weighed};
use crate::weigh::key;
use crate::weigh::report::{LOG_FILE, Loaded};

/// Figures of an evaluation that a line of the table shows.
const FIGURES_SHOWN: usize = 3;

/// What was measured of an artifact, by hardware, and what the gate said of it.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Evidence {
    #[command(subcommand)]
    command: Option<EvidenceCommand>,
    /// ns/name:tag or ns/name@sha256:...
    #[arg(required = true)]
    reference: Option<String>,
}

#[derive(Debug, Subcommand)]
enum EvidenceCommand {
    /// Sign a report about an artifact and store it with its samples
    Add(Add),
}

/// Sign a report about an artifact and store it with its samples.
///
/// FILE is a report in our JSON, the results of lm-evaluation-harness, or a directory that holds one of them. Samples
/// that lie beside it are taken, too: two runs with samples can be compared far more sharply.
#[derive(Debug, Args)]
struct Add {
    /// ns/name:tag or ns/name@sha256:...
    reference: String,
    /// The report
    file: PathBuf,
    /// Samples, where they do not lie beside the report (may be repeated)
    #[arg(long, value_name = "FILE")]
    samples: Vec<PathBuf>,
    #[command(flatten)]
    about: About,
    /// The evaluator's key, more where the root asks for more [default: WEIGHLOCK_SIGNING_KEY, else the admin key]
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
}

/// What a report may leave unsaid.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct About {
    /// What stands for the suite: a name with its version, a file, or sha256:... [default: as the report says]
    #[arg(long, value_name = "SUITE")]
    suite: Option<String>,
    /// Hardware key of the host that it ran on, or `here` [default: as the report says]
    #[arg(long, value_name = "KEY")]
    ran_on: Option<String>,
}

/// What was signed.
#[derive(Debug, Serialize)]
pub(super) struct Signed {
    pub(super) reference: String,
    pub(super) digest: ManifestDigest,
    pub(super) statement: StatementId,
    pub(super) evidence: ManifestDigest,
    pub(super) evidence_bytes: u64,
    pub(super) report: Sha256,
    pub(super) metrics: usize,
    pub(super) with_samples: usize,
    pub(super) hardware: String,
    pub(super) warnings: Vec<String>,
}

impl Evidence {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        if let Some(EvidenceCommand::Add(add)) = self.command {
            return add.run(context);
        }
        let reference: Reference = self.reference.unwrap_or_default().parse()?;
        let weighed: Weighed = context.ask(&AdminRequest::Weighed { reference: reference.to_string() })?;
        context.output.print(&weighed, text)
    }
}

impl Add {
    fn run(self, context: &Context) -> Result<()> {
        let reference: Reference = self.reference.parse()?;
        let mut loaded = Loaded::read(&self.file, &self.samples)?;
        self.about.fill(&mut loaded, context)?;
        let weighed: Weighed = context.ask(&AdminRequest::Weighed { reference: reference.to_string() })?;
        let keys = key::evaluators(&self.key, &context.dirs, Some(&weighed.cluster))?;
        let signed = store(context, &reference, &weighed, loaded, None, &keys)?;
        for warning in &signed.warnings {
            eprintln!("warning: {warning}");
        }
        context.output.print(&signed, signed_text)
    }
}

impl About {
    /// Says what the report does not.
    ///
    /// # Errors
    /// The report says something else.
    pub(super) fn fill(&self, loaded: &mut Loaded, context: &Context) -> Result<()> {
        self.fill_suite(loaded)?;
        let report = &mut loaded.report;
        if let Some(hardware) = &self.ran_on {
            let hardware = match hardware.as_str() {
                "here" => context.config.hardware.clone().unwrap_or_else(hardware::detect),
                key if key.len() <= 64 && key.split('/').filter(|part| !part.is_empty()).count() == 2 => {
                    key.into()
                }
                other => {
                    return Err(Error::invalid(format!("--ran-on {other:?} is no hardware key"))
                        .hint("it is vendor/arch such as nvidia/sm_90, or `here`"));
                }
            };
            if report.host.as_ref().is_some_and(|host| host.hardware != hardware) {
                return Err(Error::invalid("the report says that it ran on other hardware than --ran-on")
                    .hint("leave --ran-on out: the report is believed"));
            }
            report.host.get_or_insert(HostProfile { hardware, model: String::new(), memory_gib: None });
        }
        Ok(())
    }
}

impl About {
    /// Says which suite it is, where the report does not.
    ///
    /// # Errors
    /// The report says something else.
    pub(super) fn fill_suite(&self, loaded: &mut Loaded) -> Result<()> {
        let Some(text) = &self.suite else { return Ok(()) };
        let suite = suite(text)?;
        if loaded.report.suite.is_some_and(|said| said != suite) {
            return Err(Error::invalid("the report names another suite than --suite")
                .hint("leave --suite out: the report is believed"));
        }
        loaded.report.suite = Some(suite);
        Ok(())
    }
}

/// Binds a report to an artifact, stores it, and signs for it. `run` is the log of a run under our eyes, and what it was
/// shut in by.
///
/// # Errors
/// The report is about something else or cannot be evidence; the key may not evaluate here; the daemon fails.
pub(super) fn store(
    context: &Context,
    reference: &Reference,
    weighed: &Weighed,
    mut loaded: Loaded,
    run: Option<(&Path, &str)>,
    keys: &[Keypair],
) -> Result<Signed> {
    let signers: Vec<&Keypair> = keys.iter().collect();
    let by = signers.first().ok_or_else(|| Error::internal("nobody signs"))?.key_id();
    let side = sides::without_reports(context, reference, weighed)?;
    bind(&mut loaded, weighed, side.contract.as_ref().and_then(|contract| contract.chat_template_sha256))?;
    // The daemon, which may run as another user, reads it from here.
    let dir = tempfile::tempdir().map_err(|e| Error::internal(format!("no temporary directory: {e}")))?;
    let fail = |e: std::io::Error| Error::internal(format!("cannot prepare the evidence: {e}"));
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).map_err(fail)?;
    loaded.write(dir.path())?;
    if let Some((log, _)) = run {
        std::fs::copy(log, dir.path().join(LOG_FILE)).map_err(fail)?;
    }
    let kept: KeptEvidence = context.ask(&AdminRequest::AddEvidence {
        reference: sides::exactly(reference, weighed.digest).to_string(),
        path: absolute(dir.path().to_owned())?,
        by,
    })?;
    let report = &loaded.report;
    let hardware = report.host.as_ref().map_or("any", |host| host.hardware.as_str()).to_owned();
    let named = |name: &str, version: &str| format!("{name} {version}").trim().to_owned();
    let findings = Findings {
        evidence: kept.evidence,
        evidence_bytes: kept.evidence_bytes,
        report: loaded.digest()?,
        suite: report.suite,
        harness: named(&report.harness.name, &report.harness.version),
        hardware: hardware.clone(),
        runtime: named(&report.runtime.name, &report.runtime.version),
        sandbox: run.map_or_else(String::new, |(_, sandbox)| sandbox.to_owned()),
        figures: report.metrics.iter().take(LINES_MAX).map(|(k, m)| (k.clone(), figure(m))).collect(),
    };
    let evaluate = Evaluate { artifact: kept.artifact, manifest: kept.digest, findings };
    let statement = Statement {
        cluster: Some(kept.cluster),
        by,
        time: now(),
        chain: None,
        kind: Kind::Evaluate(evaluate),
    };
    let envelope = String::from_utf8(statement.sign(&signers).to_json()).map_err(Error::internal)?;
    let submitted: Submitted = context.ask(&AdminRequest::Submit { envelope })?;
    if let Some(why) = &submitted.pending {
        return Err(Error::refused(format!("the evaluation has no effect: {why}")).hint(
            "it takes as many evaluators as the root asks for, each with --key; see `weighlock keys`",
        ));
    }
    Ok(Signed {
        reference: reference.to_string(),
        digest: kept.digest,
        statement: submitted.id,
        evidence: kept.evidence,
        evidence_bytes: kept.evidence_bytes,
        report: loaded.digest()?,
        metrics: report.metrics.len(),
        with_samples: loaded.samples.len(),
        hardware,
        warnings: warnings(&loaded),
    })
}

/// Makes a report one about this artifact, if it can be.
fn bind(loaded: &mut Loaded, weighed: &Weighed, template: Option<Sha256>) -> Result<()> {
    let report = &mut loaded.report;
    if let Some(other) = report.artifact.filter(|other| *other != weighed.digest) {
        return Err(Error::invalid(format!(
            "the report is about {other}, but {} is {}",
            weighed.reference, weighed.digest
        ))
        .hint("evaluate this artifact, or name the one that was evaluated"));
    }
    let limited =
        report.metrics.iter().find(|(_, m)| m.n_total.is_some_and(|all| m.n.is_none_or(|n| n < all)));
    if let Some((name, metric)) = limited {
        let (n, all) = (metric.n.unwrap_or(0), metric.n_total.unwrap_or(0));
        return Err(Error::invalid(format!("{name} was measured on {n} of {all} samples only"))
            .hint("run the whole suite, without --limit"));
    }
    if let Some(applied) = report.chat_template_sha256.filter(|applied| Some(*applied) != template) {
        let own = template.map_or_else(|| "none".to_owned(), |own| own.to_string());
        return Err(Error::invalid(format!(
            "the harness applied the chat template {applied}, but that of {} is {own}",
            weighed.reference
        ))
        .hint("evaluate with the artifact's own template"));
    }
    report.artifact = Some(weighed.digest);
    Ok(())
}

fn warnings(loaded: &Loaded) -> Vec<String> {
    let mut warnings = Vec::new();
    if loaded.report.suite.is_none() {
        warnings.push("the report does not say which suite it is of, so nothing can be compared with it; --suite says it".into());
    }
    if loaded.report.host.is_none() {
        warnings.push(
            "the report does not say where it ran; --ran-on KEY says it, --ran-on here if it was this host"
                .into(),
        );
    }
    warnings
}

/// A suite as a digest, the digest of a file, or that of a name.
fn suite(text: &str) -> Result<Sha256> {
    if text.starts_with("sha256:") {
        return text.parse().map_err(|e| Error::invalid(format!("--suite {text}: {e}")));
    }
    let path = Path::new(text);
    if path.is_file() {
        let bytes = std::fs::read(path).map_err(|e| Error::invalid(format!("--suite {text}: {e}")))?;
        return Ok(Sha256::of(&bytes));
    }
    if text.trim().is_empty() || path.is_dir() {
        return Err(Error::invalid(format!("--suite {text:?} is no name, file or digest")));
    }
    Ok(Sha256::of(text.as_bytes()))
}

fn figure(metric: &Metric) -> String {
    match metric.stderr {
        Some(stderr) => format!("{} ± {}", short(metric.value), short(stderr)),
        None => short(metric.value),
    }
}

/// Five digits that count, and no exponent where none is needed.
fn short(value: f64) -> String {
    if value != 0.0 && !(1e-4..1e7).contains(&value.abs()) {
        return format!("{value:.4e}");
    }
    let digits = 4usize.saturating_sub(value.abs().max(1.0).log10() as usize);
    format!("{value:.digits$}")
}

pub(super) fn signed_text(signed: &Signed) -> String {
    format!(
        "evidence for {} {}\n{}, {} with samples, {}; on {}; signed as {}\n",
        signed.reference,
        signed.digest,
        counted(signed.metrics, "metric"),
        signed.with_samples,
        bytes(signed.evidence_bytes),
        signed.hardware,
        signed.statement,
    )
}

fn text(weighed: &Weighed) -> String {
    let mut out = format!("{}\n{}\n\n", weighed.reference, weighed.digest);
    let mut covered = BTreeSet::new();
    let rows = weighed.evaluations.iter().map(|row| {
        let said = &row.said;
        covered.insert(said.hardware.as_str());
        let mut figures: Vec<String> =
            said.figures.iter().take(FIGURES_SHOWN).map(|(name, value)| format!("{name} {value}")).collect();
        if said.figures.len() > FIGURES_SHOWN {
            figures.push(format!("{} more", said.figures.len() - FIGURES_SHOWN));
        }
        vec![
            said.hardware.clone(),
            said.suite.map_or_else(|| "-".into(), |suite| suite.short()),
            said.harness.clone(),
            figures.join(", "),
            row.by.short(),
            UnixTime(row.time).to_string(),
        ]
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        out += "no evaluation; `weighlock evidence add` signs a report, `weighlock eval` runs a suite\n";
    } else {
        out += &table(&["HARDWARE", "SUITE", "HARNESS", "FIGURES", "BY", "WHEN"], &[], &rows);
    }
    // Evidence that does not say where it ran is for no hardware in particular, so it fills no hole.
    for hole in weighed.hardware.iter().filter(|key| !covered.contains(key.as_str())) {
        out += &format!("nothing on {hole}\n");
    }
    out += &stages(weighed);
    // The last word by hardware and policy.
    let mut last = BTreeMap::new();
    for row in &weighed.verdicts {
        last.insert((&row.said.hardware, row.said.policy), row);
    }
    if !last.is_empty() {
        out += "\n";
    }
    for row in last.into_values() {
        out += &format!(
            "gate: {} on {} under policy {}, by {} at {}\n",
            row.said.outcome.as_str(),
            row.said.hardware,
            row.said.policy.short(),
            row.by.short(),
            UnixTime(row.time)
        );
        if row.said.outcome != Outcome::Pass {
            out.extend(row.said.reasons.iter().take(FIGURES_SHOWN).map(|reason| format!("  {reason}\n")));
        }
    }
    out
}

/// Which stages it heads, by hardware; a dash is a hole.
fn stages(weighed: &Weighed) -> String {
    if weighed.stages.is_empty() {
        return String::new();
    }
    let mut keys: BTreeSet<&str> = weighed.hardware.iter().map(String::as_str).collect();
    keys.extend(weighed.stages.iter().map(|row| row.hardware.as_str()));
    let cell = |stage, key: &str| {
        let row = weighed.stages.iter().find(|row| row.stage == stage && row.hardware == key);
        row.map_or("-", |row| if row.head { "head" } else { "was head" }).to_owned()
    };
    let rows = Stage::ALL.into_iter().filter(|stage| weighed.stages.iter().any(|row| row.stage >= *stage));
    let rows: Vec<Vec<String>> = rows
        .map(|stage| {
            std::iter::once(stage.to_string()).chain(keys.iter().map(|key| cell(stage, key))).collect()
        })
        .collect();
    let head: Vec<&str> = std::iter::once("STAGE").chain(keys.iter().copied()).collect();
    format!("\n{}", table(&head, &[], &rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_digits_that_count() {
        let all = [0.0, 2.31, 12.3456, 123.456, 0.012_345, 1e-9, 123_456_789.0, -0.5];
        let text: Vec<String> = all.into_iter().map(short).collect();
        assert_eq!(
            text,
            ["0.0000", "2.3100", "12.346", "123.46", "0.0123", "1.0000e-9", "1.2346e8", "-0.5000"]
        );
    }

    #[test]
    fn suites_are_digests_files_or_names() {
        assert!(suite("sha256:00").is_err() && suite("").is_err() && suite("/").is_err());
        assert_eq!(suite("mine v1").expect("a name"), Sha256::of(b"mine v1"));
    }
}
