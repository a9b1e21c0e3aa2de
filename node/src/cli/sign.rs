//! What commands share that sign what the daemon drafts: one look at the draft, the signature, and the wait.

use std::path::Path;
use std::time::{Duration, Instant};

use weighlock_protocol::statement::{Envelope, Keypair, Statement};
use weighlock_protocol::{Reference, StatementId};

use super::Context;
use crate::error::{Error, Kind, Result};
use crate::facts::EvaluatorAsks;
use crate::local::message::{
    AdminRequest, DraftItem, DraftOf, Drafted, Inspected, Introduction, OpenFor, Standing, StandingKind,
    Submitted,
};
use crate::weigh::key;

/// Between two looks at what became of a statement.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The key of a person: named, out of the environment, or the cluster's admin key, which holds all roles at first.
///
/// # Errors
/// There is none.
pub(super) fn key(context: &Context, named: Option<&Path>) -> Result<Keypair> {
    key::evaluator(named, &context.dirs, Some(&context.cluster()?))
}

/// Opens a candidate for its evaluator: a signature over what is opened, where and when, good for a minute.
///
/// # Errors
/// The reference means nothing.
pub(super) fn to_evaluate(context: &Context, reference: &Reference, key: &Keypair) -> Result<OpenFor> {
    let inspected: Inspected = context.ask(&AdminRequest::Inspect { reference: reference.to_string() })?;
    let introduction: Introduction = context.ask(&AdminRequest::Introduction)?;
    let asks =
        EvaluatorAsks { open: inspected.digest, host: introduction.host, time: crate::cluster::now().0 };
    let payload = serde_json::to_vec(&asks).map_err(Error::internal)?;
    let proof = String::from_utf8(Envelope::sign(payload, &[key]).to_json()).map_err(Error::internal)?;
    Ok(OpenFor::Evaluation { proof })
}

/// What the daemon drafts for `key`.
///
/// # Errors
/// It makes no sense there.
pub(super) fn draft(context: &Context, key: &Keypair, of: DraftOf) -> Result<Vec<DraftItem>> {
    let drafted: Drafted = context.ask(&AdminRequest::Draft { by: key.key_id(), of })?;
    Ok(drafted.items)
}

/// Signs a draft with all keys and hands it in.
///
/// # Errors
/// It is not by the first of the keys, or the daemon refuses it.
pub(super) fn submit(context: &Context, item: &DraftItem, keys: &[Keypair]) -> Result<Submitted> {
    let payload = item.payload.as_bytes().to_vec();
    let statement = Statement::parse(&payload).map_err(Error::internal)?;
    let keys: Vec<&Keypair> = keys.iter().collect();
    if keys.first().is_none_or(|key| key.key_id() != statement.by) {
        return Err(Error::internal("the draft is for another key"));
    }
    let envelope = Envelope::sign(payload, &keys);
    let json = String::from_utf8(envelope.to_json()).map_err(Error::internal)?;
    context.ask(&AdminRequest::Submit { envelope: json })
}

/// Waits until a statement has an effect, or it is clear that it has none.
///
/// # Errors
/// The daemon is gone.
pub(super) fn settled(context: &Context, statement: StatementId, patience: Duration) -> Result<Standing> {
    let begun = Instant::now();
    loop {
        let standing: Standing = context.ask(&AdminRequest::Standing { statement })?;
        if standing.status != StandingKind::Pending || begun.elapsed() >= patience {
            return Ok(standing);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// What a statement without effect means for the command that made it.
pub(super) fn without_effect(what: &str, standing: &Standing) -> Error {
    let why = standing.why.join("; ").replace("; ", ", ");
    match standing.status {
        StandingKind::Pending => {
            Error { kind: Kind::Unavailable, ..Error::unavailable(format!("{what} waits: {why}")) }
                .hint("it takes effect by itself once that is there; `weighlock rollout status` shows it")
        }
        _ => Error::refused(format!("{what} has no effect: {why}"))
            .hint("`weighlock log` tells what came before"),
    }
}

/// Prints what the signer should know.
pub(super) fn warn(context: &Context, items: &[DraftItem]) {
    if context.output.is_quiet() {
        return;
    }
    for item in items {
        for warning in &item.warnings {
            eprintln!("warning: {warning}");
        }
    }
}
