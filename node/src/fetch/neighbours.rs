//! Neighbours of the loop around the swarm: links that are made, taken, refused and lost, and frames to them.

use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream};
use tracing::{debug, warn};
use weighlock_protocol::swarm::{Charge, Input, LayerWant, LinkId, WorkId};
use weighlock_protocol::wire::bao::GroupSet;
use weighlock_protocol::wire::swarm::Frame;
use weighlock_protocol::{KeyId, LayerId, ManifestDigest};

use super::driver::Driver;
use super::happening::Happening;
use super::{links, sources};
use crate::net::data::{GetError, open_link, refuse_link};

/// Links that wait for one manifest to be looked up.
const WAITING_LINKS_MAX: usize = 64;

/// What came of an attempt to link.
pub(super) struct Linked {
    work: WorkId,
    peer: KeyId,
    streams: Result<(SendStream, RecvStream), GetError>,
}

impl Driver {
    pub(super) fn connect(&mut self, work: WorkId, peer: KeyId) {
        let Some(digest) = self.works.get(work).map(|work| work.digest) else { return };
        let inner = self.inner.clone();
        self.linking.spawn(async move {
            let open = async {
                let connection = inner.data.connect(peer, &sources::addresses(&inner, &peer)).await?;
                open_link(&connection, digest).await
            };
            Linked { work, peer, streams: open.await }
        });
    }

    pub(super) fn linked(&mut self, linked: Linked) {
        let Linked { work, peer, streams } = linked;
        match streams {
            Ok(streams) if self.works.get(work).is_some() => self.link(work, peer, streams, true),
            Ok(_) => {}
            Err(e) => {
                debug!(%peer, error = %e, "no link");
                self.input(Input::ConnectFailed { work, peer });
            }
        }
    }

    fn link(&mut self, work: WorkId, peer: KeyId, streams: (SendStream, RecvStream), ours: bool) {
        let link = self.links.name();
        let rack = sources::rack_of(&self.inner, &peer);
        self.by_link.insert(link, work);
        if let Some(work) = self.works.get_mut(work) {
            work.links += 1;
        }
        // The reader's frames come through the same channel, so after this.
        self.links.start(link, peer, streams, self.tell.clone());
        self.input(Input::LinkUp { link, work, peer, rack, ours });
    }

    pub(super) fn unlink(&mut self, link: LinkId) {
        self.links.close(link);
        if let Some(work) = self.by_link.remove(&link).and_then(|work| self.works.get_mut(work)) {
            work.links = work.links.saturating_sub(1);
            work.idle_since = Instant::now();
        }
    }

    pub(super) fn link_ended(&mut self, link: LinkId, peer: KeyId, spoke: bool, broke_protocol: bool) {
        let work = self.by_link.get(&link).copied();
        if broke_protocol {
            let duration = Duration::from_millis(self.inner.limits.swarm.ban_ms);
            warn!(%peer, charge = %Charge::Protocol, seconds = duration.as_secs(), "banned a host");
            self.inner.ban(peer, duration, false);
            self.look();
        }
        self.unlink(link);
        self.input(Input::LinkDown { link });
        // One that takes no part is not asked again at once.
        if let Some(work) = work.filter(|_| !spoke) {
            self.input(Input::ConnectFailed { work, peer });
        }
    }

    pub(super) fn send(&mut self, to: &[LinkId], frame: &Frame) {
        let bytes = links::encode(frame);
        for link in to {
            if !self.links.send(*link, &bytes) {
                debug!(link = link.0, "a neighbour reads too slowly, or is gone");
                self.unlink(*link);
                self.input(Input::LinkDown { link: *link });
            }
        }
    }

    pub(super) fn link_in(
        &mut self,
        peer: KeyId,
        digest: ManifestDigest,
        send: SendStream,
        recv: RecvStream,
    ) {
        if self.inner.banned_until(&peer).is_some() || self.draining {
            return refuse_link(send, recv);
        }
        if let Some(id) = self.works.id(&digest) {
            return self.link(id, peer, (send, recv), false);
        }
        let first = !self.waiting_links.contains_key(&digest);
        if first && self.waiting_links.len() >= WAITING_LINKS_MAX {
            return refuse_link(send, recv);
        }
        let waiting = self.waiting_links.entry(digest).or_default();
        if waiting.len() >= WAITING_LINKS_MAX {
            return refuse_link(send, recv);
        }
        waiting.push((peer, send, recv));
        if first {
            let (inner, tell) = (self.inner.clone(), self.tell.clone());
            tokio::spawn(async move {
                let layers = sources::complete_layers(&inner, digest).await;
                let _ = tell.send(Happening::Serve { digest, layers }).await;
            });
        }
    }

    /// What is here of a manifest that others asked for is known: served if that is all of it.
    pub(super) fn serve(&mut self, digest: ManifestDigest, layers: Option<Vec<(LayerId, u64)>>) {
        let waiting = self.waiting_links.remove(&digest).unwrap_or_default();
        let layers = layers.filter(|_| !self.draining);
        let id = self.works.id(&digest).or_else(|| {
            let layers = layers?;
            let id = self.works.insert(digest, layers.iter().copied().collect(), None);
            let want = |(layer, size)| LayerWant { layer, size, missing: GroupSet::empty() };
            self.input(Input::Open { work: id, layers: layers.into_iter().map(want).collect() });
            self.candidates(id);
            Some(id)
        });
        let id = id.filter(|_| !self.draining);
        for (peer, send, recv) in waiting {
            match id {
                Some(id) => self.link(id, peer, (send, recv), false),
                None => refuse_link(send, recv),
            }
        }
    }
}
