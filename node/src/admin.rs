//! The command line's door: answers each request on `weighlock.sock`.

mod add;
mod adopt;
mod audit;
mod evidence;
mod fleet;
mod ladder;
mod list;
mod observe;
mod open;
mod remove;
mod room;
mod scrub;
mod store;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::net::UnixStream;
use weighlock_protocol::statement::{Applied, Envelope, Ledger, Revocation, Target, Why};
use weighlock_protocol::{KeyId, Reference};

use crate::audit::{Asked, Recorder};
use crate::cluster::{self, now};
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::gc;
use crate::loader;
use crate::local::frame::{self, FRAME_BYTES_MAX};
use crate::local::message::*;

/// Pause between two words to a command line that waits for a host to be found.
const LOOK_TELL: Duration = Duration::from_millis(500);

/// Serves one command line until it closes.
pub(crate) async fn serve(node: Arc<Node>, mut stream: UnixStream) {
    loop {
        let request = tokio::select! {
            () = node.stop.cancelled() => return,
            request = frame::read::<AdminRequest>(&mut stream, FRAME_BYTES_MAX) => request,
        };
        let done = match request {
            Ok(Some(request)) => answer(&node, &mut stream, request).await,
            Ok(None) => return,
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                let error = Error::invalid(format!("request is not understood: {e}"))
                    .hint("are the daemon and this command of the same version?");
                let _ = frame::write(&mut stream, &Event::Error(error)).await;
                return;
            }
            Err(_) => return,
        };
        let event = match done {
            Ok(data) => Event::Result { data },
            Err(error) => Event::Error(error),
        };
        if let Err(e) = frame::write(&mut stream, &event).await {
            if e.kind() == std::io::ErrorKind::InvalidInput {
                let error = Error::internal(format!("the answer is too long: {e}"));
                if frame::write(&mut stream, &Event::Error(error)).await.is_ok() {
                    continue;
                }
            }
            return;
        }
    }
}

async fn answer(
    node: &Arc<Node>,
    stream: &mut UnixStream,
    request: AdminRequest,
) -> Result<serde_json::Value> {
    let in_background = node.clone();
    match request {
        AdminRequest::Status => json(status(node).await?),
        AdminRequest::Add { path, reference, include, exclude, datasets, origin } => {
            let taken = add::Taken { path, include, exclude, datasets, origin };
            json(add::add(node, stream, taken, &reference).await?)
        }
        AdminRequest::List => {
            let node = in_background;
            json(blocking(move || list::list(&node)).await?)
        }
        AdminRequest::Inspect { reference } => json(inspect_reference(node, stream, &reference).await?),
        AdminRequest::Manifest { reference } => {
            let digest = node.facts.resolve(&reference.parse()?)?;
            let manifest = looking(stream, node.fetcher.manifest(digest)).await?;
            let manifest = String::from_utf8(manifest.bytes().to_vec()).map_err(Error::integrity)?;
            json(ManifestText { manifest })
        }
        AdminRequest::Remove { reference, force } => {
            if force {
                let reference: Reference = reference.parse()?;
                node.fetcher.cancel(&node.facts.resolve(&reference)?).await;
            }
            let node = in_background;
            json(blocking(move || remove::remove(&node, &reference, force)).await?)
        }
        AdminRequest::View { reference, purpose, door } => {
            json(open::view(node, stream, &Asked { text: reference, door }, purpose).await?)
        }
        AdminRequest::HookStarted { hook, digest } => {
            node.views.started(hook, digest);
            json(())
        }
        AdminRequest::AddEvidence { reference, path, by } => {
            let node = in_background;
            json(blocking(move || evidence::add(&node, &reference, &path, &by)).await?)
        }
        AdminRequest::Weighed { reference } => json(evidence::weighed(node, &reference)?),
        AdminRequest::Evidence { digest } => {
            looking(stream, evidence::check(node, digest)).await?;
            let viewed = open::view_digest(node, stream, digest).await?;
            Recorder::new(node, stream).evidence(digest).await?;
            json(viewed)
        }
        AdminRequest::Adopt { path, dry_run } => json(adopt::adopt(node, stream, path, dry_run).await?),
        AdminRequest::Scrub { reference, bytes_per_s } => {
            json(scrub::scrub(node, stream, reference.as_deref(), bytes_per_s).await?)
        }
        AdminRequest::Members => json(members(node).await?),
        AdminRequest::Forget { host } => json(fleet::forget(node, host).await?),
        AdminRequest::Drain { on } => json(fleet::drain(node, on).await),
        AdminRequest::Reload => {
            let node = in_background;
            json(blocking(move || node.live.reload()).await?)
        }
        AdminRequest::LogLevel { filter } => json(node.live.log_level(filter.as_deref())?),
        AdminRequest::Peers => json(observe::peers(node).await?),
        AdminRequest::Where { reference } => json(observe::whereabouts(node, &reference).await?),
        AdminRequest::Top => json(observe::activity(node).await?),
        AdminRequest::Chain { key } => {
            let ledger = node.facts.ledger();
            let next = ledger.next_chain(&key);
            json(ChainPosition { cluster: node.cluster, seq: next.seq, prev: next.prev })
        }
        AdminRequest::Submit { envelope } => {
            let node = in_background;
            json(blocking(move || submit(&node, &envelope)).await?)
        }
        AdminRequest::Dial { contacts } => {
            for contact in contacts.iter().filter(|contact| contact.host != node.host) {
                node.control.dial(contact.host, contact.control.clone()).await.map_err(Error::unavailable)?;
            }
            let node = in_background;
            json(blocking(move || cluster::add_contacts(&node.store, &contacts)).await?)
        }
        AdminRequest::Introduction => json(introduction(node)?),
        AdminRequest::Draft { by, of } => {
            let node = in_background;
            json(blocking(move || ladder::draft(&node, by, of)).await?)
        }
        AdminRequest::Standing { statement } => json(ladder::standing(node, statement)),
        AdminRequest::Ladder { name } => json(ladder::status(node, &name)?),
        AdminRequest::Log { name, at } => {
            let node = in_background;
            json(blocking(move || ladder::log(&node, &name, at)).await?)
        }
        AdminRequest::Rollout { name } => json(ladder::hosts(node, &name).await?),
        AdminRequest::Follow { reference, stop } => {
            let node = in_background;
            json(blocking(move || ladder::follow(&node, reference.as_deref(), stop)).await?)
        }
        AdminRequest::Keys => json(ladder::keys(node)?),
        AdminRequest::Envelope { id } => {
            let node = in_background;
            json(blocking(move || ladder::envelope(&node, &id)).await?)
        }
        AdminRequest::Gc { dry_run, all } => {
            json(gc::collect(node, gc::What { dry_run, all, ..gc::What::default() }).await?)
        }
        AdminRequest::Pin { change } => {
            let node = in_background;
            json(blocking(move || store::pin(&node, &change)).await?)
        }
        AdminRequest::DiskUse => json(store::disk_use(node).await?),
        AdminRequest::Copies { reference } => {
            let node = in_background;
            json(blocking(move || store::copies(&node, &reference)).await?)
        }
        AdminRequest::Audit { host, query } => json(audit::answer(node, host.as_deref(), query).await?),
    }
}

fn json(value: impl Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(value).map_err(Error::internal)
}

async fn status(node: &Arc<Node>) -> Result<Status> {
    let copy = node.clone();
    let (layers, integrity) = blocking(move || {
        let integrity = copy.scrubber.report(&copy.store)?;
        Ok((copy.store.layers().map_err(Error::from)?, integrity))
    })
    .await?;
    let peers = node.control.peers().await.map(|peers| peers.len()).unwrap_or_default();
    let now = now();
    let ledger = node.facts.ledger();
    let root = ledger.root(now);
    let open = ledger.artifacts().filter(|artifact| !ledger.is_gated(artifact));
    let mut ungated: Vec<String> = open.map(|artifact| artifact.namespace().to_owned()).collect();
    ungated.dedup();
    let fetches =
        node.fetcher.running().into_iter().map(|(digest, progress)| FetchRow { digest, progress }).collect();
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime_s: node.started.elapsed().as_secs(),
        host: node.host,
        name: node.name.clone(),
        hardware: node.hardware.clone(),
        draining: node.is_draining(),
        cluster: node.cluster,
        cluster_name: root.map_or_else(String::new, |root| root.root.name.clone()),
        member: ledger.is_member(&node.host, now),
        revoked: revoked(&ledger, &node.host),
        members: ledger.members(now).count(),
        peers,
        control: node.control.listen_addrs(),
        data: node.data.local_addr().map_err(Error::internal)?,
        http: node.http,
        data_dir: node.dirs.data.clone(),
        loader_socket: node.dirs.loader_socket(),
        mode: if node.is_service() { "service" } else { "single-user" }.into(),
        layers: layers.len(),
        layer_bytes: layers.iter().map(|(_, info)| info.size).sum(),
        free_bytes: node.store.available_bytes().map_err(Error::from)?,
        leases: node.leases.open().len(),
        fetches,
        ungated,
        alarms: alarms(node, &ledger, &integrity),
        integrity,
    })
}

/// What a person should look at.
pub(crate) fn alarms(node: &Node, ledger: &Ledger, integrity: &Integrity) -> Vec<String> {
    let of_ledger = ledger.alarms(now());
    let of_ledger = of_ledger.iter().map(ToString::to_string);
    let of_store = crate::scrub::alarms(integrity).into_iter().chain(node.scrubber.alarms());
    of_ledger.chain(node.audit.alarm()).chain(of_store).chain(node.gc.alarm()).collect()
}

/// The last revocation of `host`, if none of its admissions came after.
fn revoked(ledger: &Ledger, host: &KeyId) -> Option<String> {
    let of_host = |r: &Revocation| matches!(&r.revoke.target, Target::Key { key, .. } if key == host);
    let last = ledger.revocations().filter(of_host).max_by_key(|r| r.time);
    let last = last.filter(|_| ledger.is_revoked(host))?;
    let why = if last.revoke.reason.is_empty() { String::new() } else { format!(": {}", last.revoke.reason) };
    Some(format!("at {} by {}{why}", last.time, last.by))
}

async fn inspect_reference(node: &Arc<Node>, stream: &mut UnixStream, text: &str) -> Result<Inspected> {
    let reference: Reference = text.parse()?;
    let digest = node.facts.resolve(&reference)?;
    let manifest = looking(stream, node.fetcher.manifest(digest)).await?;
    let node = node.clone();
    blocking(move || {
        let ledger = node.facts.ledger();
        let published = ledger
            .publishes_of(&digest)
            .map(|p| format!("{}:{} by {} at {}", p.publish.artifact, p.publish.tag, p.by, p.time));
        Ok(Inspected {
            reference: reference.to_string(),
            digest,
            files: manifest.files().iter().map(File::from).collect(),
            total_bytes: manifest.total_bytes(),
            held_bytes: list::file_bytes_held(&node, &manifest)?,
            contract: loader::contract(&node, &manifest)?,
            published: published.collect(),
        })
    })
    .await
}

/// Waits for something that may have to look for a host first, and says so.
async fn looking<T>(stream: &mut UnixStream, wanted: impl Future<Output = Result<T>>) -> Result<T> {
    let mut wanted = std::pin::pin!(wanted);
    loop {
        tokio::select! {
            found = &mut wanted => return found,
            () = tokio::time::sleep(LOOK_TELL) => {
                tell(stream, Progress { phase: "look".into(), ..Progress::default() }).await?;
            }
        }
    }
}

async fn tell(stream: &mut UnixStream, step: Progress) -> Result<()> {
    let told = frame::write(stream, &Event::Progress(step)).await;
    told.map_err(|_| Error::unavailable("the command line went away"))
}

async fn members(node: &Arc<Node>) -> Result<Vec<MemberRow>> {
    let connected: BTreeSet<_> =
        node.control.peers().await.unwrap_or_default().into_iter().map(|peer| peer.key).collect();
    let ledger = node.facts.ledger();
    let row = |member: weighlock_protocol::statement::Member| MemberRow {
        host: member.key,
        name: member.name,
        labels: member.labels,
        since: member.since.0,
        expires: Some(member.expires.0),
        this_host: member.key == node.host,
        connected: connected.contains(&member.key),
    };
    let listed = ledger.members(now()).filter(|member| !node.forgotten.contains(&member.key));
    Ok(listed.map(row).collect())
}

fn submit(node: &Node, json: &str) -> Result<Submitted> {
    let envelope = Envelope::parse(json.as_bytes()).map_err(|e| Error::invalid(e.to_string()))?;
    let id = envelope.id();
    let ingested = node.facts.submit(&envelope)?;
    if let Some(refused) = ingested.refused {
        return Err(Error::refused(refused));
    }
    let why = ingested.accepted.iter().find(|(accepted, _)| *accepted == id).and_then(|(_, applied)| {
        let (Applied::Pending { why } | Applied::Ignored { why }) = applied else { return None };
        Some(*why)
    });
    Ok(Submitted {
        id,
        new: !ingested.accepted.is_empty(),
        pending: why.map(|why| why.to_string()),
        hint: why.and_then(advice).map(str::to_owned),
    })
}

/// What to do about a statement that has no effect.
fn advice(why: Why) -> Option<&'static str> {
    Some(match why {
        Why::UnknownKind => return None,
        Why::NotAllowed | Why::Threshold => {
            "it must be signed by a key that holds the role for it, see `weighlock keys`"
        }
        Why::Predecessor { .. } | Why::RootBefore | Why::Invite => {
            "it takes effect by itself once that is here: import it too, or wait for a host that has it"
        }
        Why::Held(_) => {
            "`weighlock rollout status` tells what it lacks; it takes effect by itself once that is here"
        }
        _ => "it is kept; `weighlock log` tells what came before it, `weighlock statement show` what it says",
    })
}

fn introduction(node: &Node) -> Result<Introduction> {
    let ledger = node.facts.ledger();
    let roots = ledger.root_chain().map(|root| String::from_utf8(root.to_json()).map_err(Error::internal));
    Ok(Introduction {
        cluster: node.cluster,
        cluster_name: ledger.root(now()).map_or_else(String::new, |root| root.root.name.clone()),
        roots: roots.collect::<Result<_>>()?,
        host: node.host,
        data: node.data_addrs(node.data.local_addr().map_err(Error::internal)?),
        control: node.control_addrs(),
    })
}
