//! The loader door: resolves, fetches what is missing, hands out read-only descriptors, keeps leases.

mod contracts;
mod files;
mod wait;
mod watch;

use std::collections::BTreeMap;
use std::fs::File as StdFile;
use std::iter;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tokio::net::UnixStream;
use tracing::{debug, info};
use weighlock_cache::{Lease, Store};
use weighlock_protocol::audit::Door;
use weighlock_protocol::manifest::Manifest;
use weighlock_protocol::statement::Grounds;
use weighlock_protocol::{LayerId, ManifestDigest, Reference, Selector};

pub(crate) use contracts::{Contracts, contract};
use files::{incomplete, lacks, layers_at, layers_to_open, open_files};

use crate::audit::{Asked, Recorder, Why, grounds};
use crate::cluster::now;
use crate::daemon::Node;
use crate::error::{Error, Kind, Result};
use crate::facts::{Basis, Purpose};
use crate::fetch::{Step, blocking};
use crate::local::frame::{self, FRAME_FDS_MAX};
use crate::local::message::{
    ContractText, Event, FdsWanted, File, LOADER_PROTOCOL, LoaderRequest, Opened, Resolved,
};
use crate::{proof, scrub};

/// Largest request of a loader, in bytes: the paths or ranges of as many files as it may ask for at once.
const REQUEST_BYTES_MAX: usize = 2 << 20;
/// Artifacts that one socket may hold open.
const OPEN_MAX: usize = 256;

/// What loaders have open: nothing of it goes by itself.
#[derive(Debug)]
pub(crate) struct Leases {
    store: Store,
    last: Mutex<Option<Instant>>,
}

impl Leases {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, last: Mutex::default() }
    }

    /// Artifacts open now, with how often.
    pub(crate) fn open(&self) -> BTreeMap<ManifestDigest, usize> {
        self.store.leased()
    }

    /// Whether something was opened so recently.
    pub(crate) fn taken_within(&self, time: Duration) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|since| since.elapsed() < time)
    }

    /// Takes a lease; nothing of the artifact goes as long as it lives. Taken first, before the bytes are looked at.
    ///
    /// # Errors
    /// None but that of a worker that ended.
    pub(crate) async fn take(&self, digest: ManifestDigest) -> Result<Arc<Lease>> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.store.note_used(&digest, now().0);
        if let Some(lease) = self.store.try_lease(digest) {
            return Ok(Arc::new(lease));
        }
        // It is being let go of: that takes one transaction.
        let store = self.store.clone();
        blocking(move || Ok(Arc::new(store.lease(digest)))).await
    }
}

/// Serves one loader until its socket closes, which gives its leases back.
pub(crate) async fn serve(node: Arc<Node>, mut stream: UnixStream) {
    let uid = stream.peer_cred().ok().map(|cred| cred.uid());
    // Whoever shares the daemon's uid could reopen a descriptor for writing. In a user's own directories that is the
    // user's own affair; a service refuses it. Root may do anything anyway.
    let own = rustix::process::geteuid();
    if node.is_service() && uid == Some(own.as_raw()) && !own.is_root() {
        let error =
            Error::refused("loaders must not run as the daemon's own user, who could change sealed layers")
                .hint("run the loader as another user in the socket's group");
        let _ = frame::write(&mut stream, &Event::Error(error)).await;
        return;
    }
    let record = Recorder::new(&node, &stream);
    let mut session = Session { node: node.clone(), uid, record, why: Why::Gone, open: BTreeMap::new() };
    loop {
        let request = tokio::select! {
            () = node.stop.cancelled() => {
                session.why = Why::Stopped;
                break;
            }
            request = frame::read::<LoaderRequest>(&mut stream, REQUEST_BYTES_MAX) => request,
        };
        let answered = match request {
            Ok(Some(request)) => session.answer(&mut stream, request).await,
            Ok(None) => break,
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                // The frame's end is known unless its length is absurd; either way the sender is lost.
                let error = Error::invalid(format!("request is not understood: {e}"));
                let _ = frame::write(&mut stream, &Event::Error(error)).await;
                break;
            }
            Err(_) => break,
        };
        if answered.is_err() {
            break;
        }
    }
}

struct Session {
    node: Arc<Node>,
    uid: Option<u32>,
    record: Recorder,
    /// Why what is still open at the end is closed.
    why: Why,
    open: BTreeMap<ManifestDigest, Open>,
}

/// Something that a socket has open.
#[derive(Clone)]
struct Open {
    manifest: Manifest,
    /// Whether files that are on their way are handed out too.
    partial: bool,
    /// By its digest, for the gate.
    reference: Reference,
    purpose: Purpose,
    _lease: Arc<Lease>,
}

/// What an open asks for.
struct Wanted {
    asked: Asked,
    fds: FdsWanted,
    partial: bool,
    purpose: Purpose,
    contract: bool,
}

impl Session {
    /// An `Err` means that the socket is gone; failures of the request are answers.
    async fn answer(&mut self, stream: &mut UnixStream, request: LoaderRequest) -> std::io::Result<()> {
        let done = match request {
            LoaderRequest::Hello { client } => {
                self.record.introduce(client.as_deref());
                let version = env!("CARGO_PKG_VERSION").to_owned();
                return frame::write(stream, &Event::Hello { protocol: LOADER_PROTOCOL, version }).await;
            }
            LoaderRequest::Open { reference, fds, partial, client, copy, ungated, contract } => {
                self.record.introduce(client.as_deref());
                let door = if copy { Door::Pull } else { Door::Loader };
                let purpose = if ungated { Purpose::Ungated } else { Purpose::Use };
                let asked = Asked { text: reference, door };
                let wanted = Wanted { asked, fds, partial, purpose, contract };
                let done = self.open(stream, &wanted).await;
                if let Err(Failed::Request(error)) = &done {
                    self.record.refused(&self.node, &wanted.asked, error).await;
                }
                done
            }
            LoaderRequest::Contract { digest } => self.contract(stream, &digest).await,
            LoaderRequest::Fds { digest, paths } => self.fds(stream, &digest, paths).await,
            LoaderRequest::Wait { digest, path, ranges } => self.wait(stream, &digest, path, &ranges).await,
            LoaderRequest::Follow { digest, paths } => self.follow(stream, &digest, &paths).await,
            LoaderRequest::Resolve { reference } => self.resolve(stream, &reference).await,
            LoaderRequest::Watch { reference, hook } => self.watch(stream, &reference, hook).await,
            LoaderRequest::Close { digest } => {
                if self.open.remove(&digest).is_some() {
                    self.record.closed(&digest, Why::Closed);
                    info!(%digest, uid = self.uid, "closed");
                }
                frame::write(stream, &Event::Closed).await.map_err(Failed::Socket)
            }
        };
        match done {
            Ok(()) => Ok(()),
            // Nothing of it was sent.
            Err(Failed::Socket(e)) if e.kind() == std::io::ErrorKind::InvalidInput => {
                let error = Error::refused(format!("the answer does not fit a frame: {e}"));
                frame::write(stream, &Event::Error(error)).await
            }
            Err(Failed::Socket(e)) => Err(e),
            // Closed rather than answered: whoever waits opens it again when the daemon is back.
            Err(Failed::Request(error))
                if self.node.stop.is_cancelled() && error.kind == Kind::Unavailable =>
            {
                Err(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, error.message))
            }
            Err(Failed::Request(error)) => {
                debug!(uid = self.uid, %error, "request failed");
                frame::write(stream, &Event::Error(error)).await
            }
        }
    }

    async fn resolve(&self, stream: &mut UnixStream, text: &str) -> std::result::Result<(), Failed> {
        let reference: Reference = text.parse().map_err(Error::from)?;
        let admitted = self.node.facts.admit(&reference, Purpose::Use)?;
        let statement = match admitted.grounds {
            Basis::Gate(Grounds::Promoted { statement, .. }) => Some(statement),
            _ => None,
        };
        let resolved = Resolved { reference: reference.to_string(), digest: admitted.digest, statement };
        frame::write(stream, &Event::Resolved(resolved)).await.map_err(Failed::Socket)
    }

    async fn open(&mut self, stream: &mut UnixStream, wanted: &Wanted) -> std::result::Result<(), Failed> {
        let Wanted { asked, fds, partial, purpose, .. } = wanted;
        let partial = *partial;
        let reference: Reference = asked.text.parse().map_err(Error::from)?;
        let admitted = self.node.facts.admit(&reference, *purpose)?;
        let digest = admitted.digest;
        if self.open.len() >= OPEN_MAX && !self.open.contains_key(&digest) {
            return Err(Error::refused(format!("this socket has {OPEN_MAX} artifacts open"))
                .hint("close some, or open another socket")
                .into());
        }
        // Leased before it is complete: nothing may be removed under a fetch that a loader waits for.
        let lease = self.node.leases.take(digest).await?;
        let mut arrival = self.node.fetcher.begin(digest).await?;
        let manifest = if partial {
            let manifest = arrival.manifest().clone();
            self.contract_here(stream, &manifest).await?;
            manifest
        } else {
            loop {
                match arrival.next().await? {
                    Step::Here(manifest) => break manifest,
                    Step::Progress(step) => {
                        frame::write(stream, &Event::Progress(step)).await.map_err(Failed::Socket)?;
                    }
                }
            }
        };
        let files: Vec<File> = manifest.files().iter().map(File::from).collect();
        let paths: Vec<String> = match fds {
            FdsWanted::All => files.iter().map(|file| file.path.clone()).collect(),
            FdsWanted::None => Vec::new(),
        };
        // By digest from here on: a channel may move on meanwhile. It is asked about again after the fetch, and before
        // anything more is handed out: a rollback may have come in between.
        let selector = Selector::Digest(digest);
        let by_digest = Reference { artifact: reference.artifact.clone(), selector };
        let mut opening = Open { manifest, partial, reference: by_digest, purpose: *purpose, _lease: lease };
        // All descriptors are opened before the answer promises them.
        let taken = self.take(stream, &opening, &paths, asked, wanted.contract).await?;
        // Who is told that all is here takes whatever it is handed later on for whole.
        opening.partial &= !taken.incomplete.is_empty();
        self.record.is_session(taken.session);
        let Taken { contract, incomplete, files: opened, .. } = taken;
        let answer = Opened {
            reference: reference.to_string(),
            digest,
            manifest_bytes: opening.manifest.bytes().len() as u64,
            files,
            contract: contract.map(ContractText),
            fds: paths.len(),
            complete: incomplete.is_empty(),
            incomplete,
        };
        info!(%digest, reference = %reference, uid = self.uid, complete = answer.complete, "opened");
        self.open.insert(digest, opening);
        frame::write(stream, &Event::Opened(Box::new(answer))).await.map_err(Failed::Socket)?;
        send(stream, &paths, &opened).await
    }

    async fn contract(
        &self,
        stream: &mut UnixStream,
        digest: &ManifestDigest,
    ) -> std::result::Result<(), Failed> {
        let Open { manifest, .. } = self.opened(digest)?;
        let (node, id) = (self.node.clone(), manifest.contract().id);
        let look = move || Ok(node.contracts.text(&manifest, node.store.open_sealed(&id)?));
        let text = scrub::whole(&self.node, *digest, Some(stream), look).await??;
        frame::write(stream, &Event::Contract { contract: ContractText(text) }).await.map_err(Failed::Socket)
    }

    async fn fds(
        &mut self,
        stream: &mut UnixStream,
        digest: &ManifestDigest,
        paths: Vec<String>,
    ) -> std::result::Result<(), Failed> {
        let open = self.opened(digest)?;
        if paths.is_empty() || paths.len() > open.manifest.files().len() {
            return Err(Error::invalid("paths must name 1 or more files, each once").into());
        }
        let opened = self.descriptors(stream, &open, &paths).await?;
        send(stream, &paths, &opened).await
    }

    fn opened(&self, digest: &ManifestDigest) -> Result<Open> {
        let open = self.open.get(digest).cloned().ok_or_else(|| {
            Error::refused(format!("{digest} is not open on this socket"))
                .hint("open it first; the lease is per socket")
        })?;
        self.node.facts.admit(&open.reference, open.purpose)?;
        Ok(open)
    }

    /// What an open answers with. All that needs the disk is done in one go by a worker, as each hop costs.
    async fn take(
        &self,
        stream: &mut UnixStream,
        open: &Open,
        paths: &[String],
        asked: &Asked,
        with_contract: bool,
    ) -> Result<Taken> {
        let (wanted, begun) = if open.partial {
            (Vec::new(), self.descriptors(stream, open, paths).await?)
        } else {
            (layers_to_open(&open.manifest, paths)?, Vec::new())
        };
        let wanted = wanted.into_iter().map(|(id, _)| id);
        let sealed: Vec<LayerId> = iter::once(open.manifest.contract().id).chain(wanted).collect();
        // Where all are opened, none is missing.
        let all = !open.partial && paths.len() == open.manifest.files().len();
        let (node, opening) = (self.node.clone(), open.clone());
        let grant = self.record.granting(asked, open.manifest.digest());
        let look = move || {
            let manifest = &opening.manifest;
            // Damage shows here. Whatever else may be wrong, no other host can heal it.
            let mut opened = node.store.open_all_sealed(&sealed)?;
            let contract = opened.remove(0);
            let files = opened.into_iter().map(|layer| layer.file).collect();
            let judge = || {
                check_quarantine(&node, manifest)?;
                let contract = with_contract.then(|| node.contracts.text(manifest, contract)).transpose()?;
                let incomplete = if all { Vec::new() } else { incomplete(&node.store, manifest)? };
                let admitted = node.facts.admit(&opening.reference, opening.purpose)?;
                // Written before it is answered.
                let session = grant.write(grounds(&node, &admitted));
                Ok::<_, Error>(Taken { contract, incomplete, files, session })
            };
            Ok(judge())
        };
        let mut taken = scrub::whole(&self.node, open.manifest.digest(), Some(stream), look).await??;
        taken.files.extend(begun);
        Ok(taken)
    }

    /// Opens files, read-only, at most as many as one process can hold.
    async fn descriptors(
        &self,
        stream: &mut UnixStream,
        open: &Open,
        paths: &[String],
    ) -> Result<Vec<StdFile>> {
        let Open { manifest, partial, .. } = open;
        let layers = layers_to_open(manifest, paths)?;
        let (store, partial) = (self.node.store.clone(), *partial);
        if partial && lacks(&store, &layers).await? {
            // Files are begun for who fetches them, and for nobody else.
            self.node.fetcher.begin(manifest.digest()).await?;
        }
        let open = move || open_files(&store, &layers, partial);
        scrub::whole(&self.node, manifest.digest(), Some(stream), open).await
    }
}

/// What is on the disk of an artifact that is opened.
struct Taken {
    contract: Option<Arc<RawValue>>,
    /// Paths of files that are not all here.
    incomplete: Vec<String>,
    files: Vec<StdFile>,
    /// Its number in the audit log.
    session: u64,
}

impl Drop for Session {
    fn drop(&mut self) {
        for digest in self.open.keys() {
            self.record.closed(digest, self.why);
            info!(%digest, uid = self.uid, "closed");
        }
    }
}

enum Failed {
    /// The loader is gone.
    Socket(std::io::Error),
    /// The answer is an error.
    Request(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Request(error)
    }
}

async fn send(
    stream: &mut UnixStream,
    paths: &[String],
    files: &[StdFile],
) -> std::result::Result<(), Failed> {
    for (paths, files) in paths.chunks(FRAME_FDS_MAX).zip(files.chunks(FRAME_FDS_MAX)) {
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let event = Event::Fds { paths: paths.to_vec() };
        frame::write_with_fds(stream, &event, &fds).await.map_err(
            |e| match rustix::io::Errno::from_io_error(&e) {
                // The kernel lets so many of one user be on their way, and nothing of the frame was sent.
                Some(rustix::io::Errno::TOOMANYREFS) => {
                    Error::unavailable("loaders that do not take their descriptors keep others from theirs")
                        .hint("try again; close the sockets of loaders that hang")
                        .into()
                }
                _ => Failed::Socket(e),
            },
        )?;
    }
    Ok(())
}

/// # Errors
/// The manifest was found to lie about a SHA-256.
pub(crate) fn check_quarantine(node: &Node, manifest: &Manifest) -> Result<()> {
    if proof::quarantined(&node.store)?.contains(&manifest.digest()) {
        return Err(Error::integrity(format!(
            "{} is quarantined: it names SHA-256 digests that its files do not have",
            manifest.digest()
        ))
        .hint("its publisher must publish it again under a new tag"));
    }
    Ok(())
}
