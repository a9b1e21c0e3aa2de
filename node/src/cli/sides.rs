//! What the gate is to know of a path or a reference, asked of the daemon where there is one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use weighlock_cache::{ImportProgress, inspect};
use weighlock_protocol::audit::Door;
use weighlock_protocol::manifest::Contract;
use weighlock_protocol::names::Selector;
use weighlock_protocol::statement::Findings;
use weighlock_protocol::{ManifestDigest, Reference, Sha256};

use super::Context;
use crate::error::{Error, Result};
use crate::local::message::{AdminRequest, Inspected, OpenFor, Progress, SaidRow, Viewed, Weighed};
use crate::weigh::report::Loaded;
use crate::weigh::side::Side;

/// What an argument names: a path if there is one, else a reference with the evidence that the cluster has of it.
/// Where it was evaluated on several kinds of hardware, `hardware` chooses; `with_reports` is false where others are given.
///
/// # Errors
/// Neither path nor reference, a path that cannot be read, a reference that means nothing, no daemon.
pub(super) fn of(context: &Context, text: &str, hardware: Option<&str>, with_reports: bool) -> Result<Side> {
    let path = Path::new(text);
    if path.exists() {
        return of_path(context, path);
    }
    let reference: Reference = text.parse().map_err(|e| {
        Error::not_found(format!("{text} is neither a path that exists nor a reference: {e}"))
            .hint("name a directory, a .safetensors or .gguf file, or an artifact as ns/name:tag")
    })?;
    if !with_reports {
        let weighed: Weighed = context.ask(&AdminRequest::Weighed { reference: reference.to_string() })?;
        return without_reports(context, &reference, &weighed);
    }
    of_reference(context, &reference, hardware)
}

/// Hashes a path, with a bar.
pub(super) fn of_path(context: &Context, path: &Path) -> Result<Side> {
    let bar = std::sync::Mutex::new(context.progress());
    let progress = |step: ImportProgress| {
        // Whoever finds it busy leaves the news to the others.
        if let Ok(mut bar) = bar.try_lock() {
            bar.show(&Progress {
                phase: "hash".into(),
                done_bytes: step.done_bytes,
                total_bytes: step.total_bytes,
                ..Progress::default()
            });
        }
    };
    let side = Side::of_path(path, &progress);
    if let Ok(mut bar) = bar.lock() {
        bar.clear();
    }
    side
}

/// An artifact of the cluster, with the newest report of each suite.
pub(super) fn of_reference(context: &Context, reference: &Reference, hardware: Option<&str>) -> Result<Side> {
    let weighed: Weighed = context.ask(&AdminRequest::Weighed { reference: reference.to_string() })?;
    let mut side = without_reports(context, reference, &weighed)?;
    for said in newest(&weighed, hardware)? {
        side.add_report(stored(context, said, weighed.digest)?, Some(said.said.report))?;
    }
    Ok(side)
}

/// The very artifact that a reference named when `digest` was asked for: a channel may move on meanwhile.
pub(super) fn exactly(reference: &Reference, digest: ManifestDigest) -> Reference {
    Reference { selector: Selector::Digest(digest), ..reference.clone() }
}

/// An artifact of the cluster, its contract fetched where it is not here.
pub(super) fn without_reports(context: &Context, reference: &Reference, weighed: &Weighed) -> Result<Side> {
    let exact = exactly(reference, weighed.digest).to_string();
    let mut inspected: Inspected = context.ask(&AdminRequest::Inspect { reference: exact.clone() })?;
    if inspected.contract.is_none() {
        let purpose = OpenFor::Metadata;
        let _: Viewed =
            context.ask(&AdminRequest::View { reference: exact.clone(), purpose, door: Door::Path })?;
        inspected = context.ask(&AdminRequest::Inspect { reference: exact })?;
    }
    Ok(Side {
        label: reference.to_string(),
        artifact: Some(reference.artifact.clone()),
        digest: Some(weighed.digest),
        contract: inspected.contract,
        files: Some(inspected.files.into_iter().map(|file| file.path).collect()),
        ..Side::default()
    })
}

/// What the gate compares of two contracts.
const COMPARED: [&str; 10] = [
    "architecture",
    "param_count",
    "precision",
    "quantization",
    "max_seq_len",
    "tokenizer_sha256",
    "chat_template_sha256",
    "generation_config_sha256",
    "prompt_schema",
    "adapter",
];

/// Whether the files in `path` are what a published contract says of them: whoever published it wrote it, and whoever signs
/// for it signs for both.
///
/// # Errors
/// They are not, or cannot be read.
pub(super) fn check_contract(path: &Path, said: &Contract) -> Result<()> {
    let found = inspect::plan(path, &inspect::Options::default()).map_err(Error::from)?.contract;
    let plain = |contract: &Contract| serde_json::to_value(contract).map_err(Error::internal);
    // A release that reads more from files than the one that published says so by its version.
    let is_alike = said.version == found.version;
    let (said, found) = (plain(said)?, plain(&found)?);
    let differs = |key: &&str| {
        let (said, found) = (&said[*key], &found[*key]);
        said != found && (is_alike || !(said.is_null() || found.is_null()))
    };
    let wrong: Vec<&str> = COMPARED.into_iter().filter(differs).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Error::integrity(format!(
        "the contract that was published is not that of the files: {}",
        wrong.join(", ")
    ))
    .hint("nothing was signed; whoever published it can publish the files anew under another tag"))
}

/// Fetches the report of an evaluation and proves that it is the one that was signed.
pub(super) fn stored(context: &Context, said: &SaidRow<Findings>, about: ManifestDigest) -> Result<Loaded> {
    let viewed: Viewed = context.ask(&AdminRequest::Evidence { digest: said.said.evidence })?;
    let loaded = Loaded::read(&viewed.path, &[])?;
    let digest: Sha256 = loaded.digest()?;
    if loaded.report.artifact != Some(about) {
        return Err(Error::integrity(format!("the report in {} is not about {about}", said.said.evidence))
            .hint("an admin can revoke that evaluation; evaluate again"));
    }
    if digest != said.said.report {
        return Err(Error::integrity(format!(
            "the evidence {} holds a report with digest {digest}, but {} signed {}",
            said.said.evidence, said.by, said.said.report
        ))
        .hint("an admin can revoke that evaluation; evaluate again"));
    }
    Ok(loaded)
}

/// The newest evaluation of each suite on one kind of hardware.
fn newest<'a>(weighed: &'a Weighed, hardware: Option<&str>) -> Result<Vec<&'a SaidRow<Findings>>> {
    let keys: BTreeSet<&str> = weighed.evaluations.iter().map(|said| said.said.hardware.as_str()).collect();
    let chosen = match (hardware, keys.len()) {
        (Some(hardware), _) => Some(hardware),
        (None, 0) => None,
        (None, 1) => keys.first().copied(),
        (None, _) => {
            let keys: Vec<&str> = keys.into_iter().collect();
            return Err(Error::invalid(format!(
                "{} was evaluated on {}",
                weighed.reference,
                keys.join(", ")
            ))
            .hint("say which one is meant with --hardware"));
        }
    };
    let mut of_suite = BTreeMap::new();
    for said in weighed.evaluations.iter().filter(|said| chosen == Some(said.said.hardware.as_str())) {
        // By time, so a later one takes the place of an earlier one.
        of_suite.insert(said.said.suite, said);
    }
    Ok(of_suite.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contract_that_is_not_of_the_files_is_told_by_what_differs() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("tokenizer.json"), "{\"model\":{\"vocab\":{}}}").expect("written");
        std::fs::write(dir.path().join("config.json"), "{\"max_position_embeddings\":512}").expect("written");
        let true_one = inspect::plan(dir.path(), &inspect::Options::default()).expect("a plan").contract;
        assert!(true_one.tokenizer_sha256.is_some() && true_one.max_seq_len.is_some());
        check_contract(dir.path(), &true_one).expect("it is");
        let other = Contract {
            tokenizer_sha256: Some(Sha256::of(b"another")),
            max_seq_len: None,
            lineage: None,
            ..true_one.clone()
        };
        let error = check_contract(dir.path(), &other).expect_err("it is not");
        assert!(error.message.contains("max_seq_len, tokenizer_sha256"), "{}", error.message);
    }
}
