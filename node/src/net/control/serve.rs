//! Answers what peers ask, and hands out the answers to what this host asked.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use libp2p::PeerId;
use libp2p::request_response::{Event, Message, OutboundFailure, ResponseChannel};
use tokio::sync::oneshot;
use weighlock_protocol::KeyId;
use weighlock_protocol::manifest::MANIFEST_BYTES_MAX;
use weighlock_protocol::wire::control::{AUDIT_ANSWER_BYTES_MAX, Blob, Hello, Request, Response, WireError};

use super::backend::Backend;
use super::codec::Incoming;
use super::driver::{ControlDriver, Done};
use super::handle::{Counters, RequestError};
use super::identity::key_id;
use super::sync::{blocking, ids_page, statements_page};

/// An answer, and what working it out brought about.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) accepted: usize,
    pub(super) offence: Option<String>,
}

impl ControlDriver {
    pub(super) fn on_sync(&mut self, event: Event<Incoming, Response>) {
        match event {
            Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => {
                self.on_request(peer, request, channel);
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                if let Some(reply) = self.requests.remove(&request_id) {
                    let _ = reply.send(Ok(response));
                }
            }
            Event::OutboundFailure { peer, request_id, error, .. } => {
                if let Some(reply) = self.requests.remove(&request_id) {
                    let failed = match &error {
                        OutboundFailure::DialFailure => RequestError::Unreachable,
                        other => RequestError::Failed(other.to_string()),
                    };
                    let _ = reply.send(Err(failed));
                }
                if let OutboundFailure::Io(error) = error {
                    self.on_broken(peer, &error);
                }
            }
            Event::InboundFailure { .. } | Event::ResponseSent { .. } => {}
        }
    }

    /// Sends a request to a member, dialling it if its addresses are known.
    pub(super) fn request(
        &mut self,
        peer: PeerId,
        request: Request,
        reply: oneshot::Sender<Result<Response, RequestError>>,
    ) {
        if !self.peers.is_member(&peer) || self.peers.is_banned(&peer) {
            let _ = reply.send(Err(RequestError::NotMember));
            return;
        }
        let addrs = self.peers.addrs(&peer);
        let id = self.swarm.behaviour_mut().sync.send_request_with_addresses(&peer, Ok(request), addrs);
        self.requests.insert(id, reply);
    }

    /// What this host says when it meets another.
    pub(super) fn hello_for(&self, to: KeyId, now: Instant) -> Hello {
        Hello { own: self.hosts.own(), known: self.hosts.telling(to, now) }
    }

    pub(super) fn on_answered(
        &mut self,
        peer: PeerId,
        channel: ResponseChannel<Response>,
        answer: Option<Answer>,
    ) {
        if let Some(serving) = self.serving.get_mut(&peer) {
            *serving = serving.saturating_sub(1);
            if *serving == 0 {
                self.serving.remove(&peer);
            }
        }
        let Some(answer) = answer else { return };
        Counters::add(&self.counters.requests_answered, 1);
        let _ = self.swarm.behaviour_mut().sync.send_response(channel, answer.response);
        if answer.accepted > 0 {
            self.ingested(peer, answer.accepted);
            self.reconcile_soon(Some(peer), self.config.limits.sync_fanout_max);
        }
        if let Some(reason) = answer.offence {
            self.offend(peer, reason);
        }
    }

    fn on_request(&mut self, peer: PeerId, request: Incoming, channel: ResponseChannel<Response>) {
        // A connection that is being closed may still deliver.
        let (Some(from), true) = (key_id(peer), self.peers.is_member(&peer) && !self.peers.is_banned(&peer))
        else {
            return;
        };
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                // A newer release may ask what this one does not know.
                if !matches!(error, WireError::Version(_)) {
                    self.offend(peer, error.to_string());
                }
                return;
            }
        };
        if let Request::Hello(hello) = request {
            let now = Instant::now();
            let own = Response::Hello(self.hello_for(from, now));
            self.on_hello(peer, hello, now);
            Counters::add(&self.counters.requests_answered, 1);
            let _ = self.swarm.behaviour_mut().sync.send_response(channel, own);
            return;
        }
        let limits = &self.config.limits;
        let serving = self.serving.entry(peer).or_default();
        if *serving >= limits.requests_per_peer_max || self.jobs >= limits.jobs_max {
            Counters::add(&self.counters.requests_busy, 1);
            let _ = self.swarm.behaviour_mut().sync.send_response(channel, Response::Busy);
            return;
        }
        *serving += 1;
        self.jobs += 1;
        let (backend, bytes_max) = (Arc::clone(&self.backend), limits.sync_page_bytes_max);
        self.tasks.spawn(async move {
            let answer = blocking(move || answer(backend.as_ref(), bytes_max, from, request)).await.ok();
            Done::Answered { peer, channel, answer }
        });
    }

    /// A stream broke. Only bytes that no honest host sends count against the peer.
    fn on_broken(&mut self, peer: PeerId, error: &io::Error) {
        if error.kind() == io::ErrorKind::InvalidData {
            self.offend(peer, error.to_string());
        }
    }
}

fn answer(backend: &dyn Backend, bytes_max: usize, from: KeyId, request: Request) -> Answer {
    let (mut accepted, mut offence) = (0, None);
    let response = match request {
        Request::Hello(_) => Response::Hello(Hello::default()),
        Request::Summary { summary } => {
            let mut buckets = backend.differing(&summary.0).unwrap_or_else(|reason| {
                offence = Some(reason);
                Vec::new()
            });
            buckets.sort_unstable();
            buckets.dedup();
            Response::Differing { buckets }
        }
        Request::Ids { buckets, after } => Response::Ids { buckets: ids_page(backend, &buckets, after) },
        Request::Statements { ids } => {
            let (statements, done) = statements_page(backend, &ids, bytes_max);
            Response::Statements { statements, done: done as u32 }
        }
        Request::Push { statements } => {
            let report = backend.ingest(from, statements.into_iter().map(|s| s.0).collect());
            (accepted, offence) = (report.accepted, report.refused);
            Response::Pushed { accepted: accepted as u32 }
        }
        Request::Manifest { digest } => {
            let bytes = backend.manifest(&digest).filter(|m| m.len() <= MANIFEST_BYTES_MAX);
            Response::Manifest { bytes: bytes.map(|m| Blob(m.to_vec())) }
        }
        Request::Audit { query } => {
            let answer = backend.audit(from, &query.0);
            if answer.len() > AUDIT_ANSWER_BYTES_MAX {
                Response::Busy
            } else {
                Response::Audit { answer: Blob(answer) }
            }
        }
    };
    Answer { response, accepted, offence }
}
