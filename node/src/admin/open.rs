//! Directories for the command line: asks the gate, fetches what is missing, and writes down who got what.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::UnixStream;
use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::{ManifestDigest, Reference, Selector};

use super::{looking, tell};
use crate::audit::{Asked, Recorder, grounds};
use crate::daemon::Node;
use crate::error::{Kind, Result};
use crate::facts::{Basis, Purpose};
use crate::fetch::{Step, blocking};
use crate::local::message::{OpenFor, Viewed};
use crate::{loader, scrub};

/// A read-only directory of what a reference means, if the gate lets it.
///
/// # Errors
/// It means nothing, the gate is shut, or nobody has it. Each is written into the audit log.
pub(super) async fn view(
    node: &Arc<Node>,
    stream: &mut UnixStream,
    asked: &Asked,
    purpose: OpenFor,
) -> Result<Viewed> {
    if matches!(purpose, OpenFor::Metadata) {
        // What it says of itself is no secret; its files stay shut.
        let digest = node.facts.resolve(&asked.text.parse()?)?;
        fetch(node, stream, digest).await?;
        return Ok(Viewed { digest, path: PathBuf::new() });
    }
    let mut record = Recorder::new(node, stream);
    let viewed = async {
        let reference: Reference = asked.text.parse()?;
        let purpose = match purpose {
            OpenFor::Use | OpenFor::Metadata => Purpose::Use,
            OpenFor::Ungated => Purpose::Ungated,
            OpenFor::Evaluation { proof } => {
                let digest = node.facts.resolve(&reference)?;
                Purpose::Evaluate(node.facts.evaluator(proof.as_bytes(), &digest)?)
            }
        };
        let admitted = node.facts.admit(&reference, purpose)?;
        if !matches!(admitted.grounds, Basis::Gate(_)) {
            node.views.grant(admitted.digest);
        }
        let viewed = view_digest(node, stream, admitted.digest).await?;
        // Asked again, by digest: a rollback may have come while it was fetched.
        let selector = Selector::Digest(viewed.digest);
        let by_digest = Reference { artifact: reference.artifact.clone(), selector };
        let admitted = node.facts.admit(&by_digest, purpose).inspect_err(|_| node.views.wake())?;
        // Written before it is answered.
        record.granted(asked, admitted.digest, grounds(node, &admitted)).await?;
        Ok(viewed)
    }
    .await;
    if let Err(error) = &viewed {
        record.refused(node, asked, error).await;
    }
    viewed
}

/// A read-only directory of a manifest.
///
/// # Errors
/// Nobody has it, or the store failed.
pub(super) async fn view_digest(
    node: &Arc<Node>,
    stream: &mut UnixStream,
    digest: ManifestDigest,
) -> Result<Viewed> {
    // Taken first: nothing of it goes while its directory is made.
    let _lease = node.leases.take(digest).await?;
    let manifest = fetch(node, stream, digest).await?;
    let view = || {
        let (node, manifest) = (node.clone(), manifest.clone());
        async move {
            let (copy, of) = (node.clone(), manifest.clone());
            blocking(move || loader::check_quarantine(&copy, &of)).await?;
            let store = node.store.clone();
            let view = move || store.view(&manifest);
            scrub::whole(&node, digest, None, view).await
        }
    };
    let path = match view().await {
        // Where blocks are not shared it takes as much space again.
        Err(e) if e.kind == Kind::Unavailable => {
            node.room.make(manifest.total_bytes()).await;
            view().await?
        }
        made => made?,
    };
    Ok(Viewed { digest, path })
}

/// All of a manifest is here; nothing of it is shown to anybody.
async fn fetch(node: &Arc<Node>, stream: &mut UnixStream, digest: ManifestDigest) -> Result<Manifest> {
    let mut arrival = looking(stream, node.fetcher.begin(digest)).await?;
    loop {
        match arrival.next().await? {
            Step::Here(manifest) => return Ok(manifest),
            Step::Progress(step) => tell(stream, step).await?,
        }
    }
}
