//! How hosts reach each other: gossip, questions and answers, the door for strangers, and what goes wrong on the way.

use std::time::Duration;

use rand::RngExt;
use weighlock_protocol::statement::{Envelope, Status};
use weighlock_protocol::wire::control::{Blob, Gossip, Request, Response, STATEMENTS_MAX};

use super::{Event, FoldWorld};
use crate::fold::author::admit;
use crate::fold::sync::lie;

/// What travels between two hosts.
#[derive(Debug)]
pub(in crate::fold) enum Message {
    /// To everyone, from neighbour to neighbour.
    Gossip(Vec<u8>),
    /// A question of a session.
    Ask { session: u64, bytes: Vec<u8> },
    /// Its answer.
    Answer { session: u64, bytes: Vec<u8> },
}

impl FoldWorld {
    /// Pushes statements to the neighbours of `host` that it takes for members.
    pub(in crate::fold) fn gossip(&mut self, host: usize, except: Option<usize>, envelopes: &[Vec<u8>]) {
        for some in envelopes.chunks(STATEMENTS_MAX) {
            let statements = some.iter().cloned().map(Blob).collect();
            let bytes = Gossip::Statements { statements, manifest: None }.encode();
            self.hosts[host].heard.insert(*blake3::hash(&bytes).as_bytes());
            self.push(host, except, &bytes);
        }
    }

    fn push(&mut self, host: usize, except: Option<usize>, bytes: &[u8]) {
        for to in self.neighbours[host].clone() {
            let known = self.hosts[host].counts(&self.hosts[to].id(), self.now);
            if Some(to) != except && known {
                self.send(host, to, Message::Gossip(bytes.to_vec()));
            }
        }
    }

    /// Puts a message on its way, if it gets anywhere.
    pub(in crate::fold) fn send(&mut self, from: usize, to: usize, message: Message) {
        self.counts.messages += 1;
        let o = &self.options;
        let calm = self.healed;
        if self.is_parted(from, to) || (!calm && self.rng.random_range(0..1000) < o.loss_permille) {
            self.counts.lost += 1;
            return;
        }
        let mut delay = o.latency_ms * 1_000_000;
        if !calm {
            delay += self.rng.random_range(0..=o.jitter_ms * 1_000_000);
        }
        if let (false, Message::Gossip(bytes)) = (calm, &message) {
            if self.rng.random_range(0..1000) < o.late_permille {
                self.counts.late += 1;
                delay += self.rng.random_range(0..=o.late_ms_max * 1_000_000);
            }
            if self.rng.random_range(0..1000) < o.duplicate_permille {
                self.counts.duplicates += 1;
                let again = delay + self.rng.random_range(0..=o.late_ms_max * 1_000_000);
                let message = Message::Gossip(bytes.clone());
                self.queue.push(self.now + Duration::from_nanos(again), Event::Deliver { to, from, message });
            }
        }
        self.queue.push(self.now + Duration::from_nanos(delay), Event::Deliver { to, from, message });
    }

    pub(super) fn deliver(&mut self, to: usize, from: usize, message: Message) {
        let host = &self.hosts[to];
        let banned = host.banned.get(&from).is_some_and(|until| *until > self.now);
        let stranger = !host.counts(&self.hosts[from].id(), self.now);
        // What gossip has not brought by the time the faults heal is left to reconciliation.
        let too_late = self.healed && matches!(message, Message::Gossip(_));
        if !host.up || banned || stranger || too_late || self.is_parted(from, to) {
            self.counts.dropped += 1;
            return;
        }
        match message {
            Message::Gossip(bytes) => self.on_gossip(to, from, &bytes),
            Message::Ask { session, bytes } => self.on_ask(to, from, session, &bytes),
            Message::Answer { session, bytes } => self.on_answer(to, from, session, &bytes),
        }
    }

    fn on_gossip(&mut self, to: usize, from: usize, bytes: &[u8]) {
        let new = self.hosts[to].heard.insert(*blake3::hash(bytes).as_bytes());
        if !new && !self.options.forgetful {
            return;
        }
        let statements = match Gossip::decode(bytes) {
            Ok(Gossip::Statements { statements, .. }) => statements,
            Ok(Gossip::Host(_)) => return,
            Err(e) => return self.accuse(to, from, &e.to_string()),
        };
        // All or nothing: one that is rubbish keeps the message from going any further.
        let bad = statements.iter().find_map(|s| {
            let checked = Envelope::parse(&s.0).map(|e| self.hosts[to].ledger.check(&e));
            match checked {
                Ok(Ok(_)) => None,
                Ok(Err(e)) => Some(e.to_string()),
                Err(e) => Some(e.to_string()),
            }
        });
        if let Some(reason) = bad {
            return self.accuse(to, from, &reason);
        }
        let all: Vec<Vec<u8>> = statements.into_iter().map(|s| s.0).collect();
        let ingested = self.hosts[to].ingest(&all);
        let passes = !ingested.accepted.is_empty() && !self.healed;
        self.ingested(to, Some(from), ingested);
        let keeps_silent = !self.hosts[to].honest && self.rng.random_bool(0.5);
        if passes && !keeps_silent {
            self.push(to, Some(from), bytes);
        }
    }

    fn on_ask(&mut self, to: usize, from: usize, session: u64, bytes: &[u8]) {
        let request = match Request::decode(bytes) {
            Ok(request) => request,
            Err(e) => return self.accuse(to, from, &e.to_string()),
        };
        let lies = !self.hosts[to].honest && self.rng.random_bool(0.3);
        let answer = if lies {
            self.counts.lies += 1;
            lie(&request, &self.forgeries, &mut self.rng)
        } else {
            let config = self.reconcile_config();
            let (answer, ingested) = self.hosts[to].answer(request, &config);
            self.ingested(to, Some(from), ingested);
            answer
        };
        self.send(to, from, Message::Answer { session, bytes: answer.encode() });
    }

    fn on_answer(&mut self, to: usize, from: usize, session: u64, bytes: &[u8]) {
        let answer = match Response::decode(bytes) {
            Ok(answer) => answer,
            Err(e) => return self.accuse(to, from, &e.to_string()),
        };
        let heard = self.hosts[to].answered(from, session, answer);
        self.ingested(to, None, heard.ingested);
        if let Some(reason) = heard.offence {
            self.accuse(to, from, &reason);
        } else if let Some(request) = heard.ask {
            self.ask(to, from, session, &request);
        }
    }

    fn ask(&mut self, host: usize, peer: usize, session: u64, request: &Request) {
        if let Some(running) = self.hosts[host].sessions.get_mut(&peer) {
            running.begun = self.now;
        }
        self.send(host, peer, Message::Ask { session, bytes: request.encode() });
    }

    /// Reconciles with a few of those whom this host takes for members.
    pub(super) fn timer(&mut self, host: usize) {
        let pause = self.options.reconcile_ms * 1_000_000;
        let pause = pause - pause / 10 + self.rng.random_range(0..=pause / 5);
        self.queue.push(self.now + Duration::from_nanos(pause), Event::Timer { host });
        self.vote_soon(host);
        let this = &self.hosts[host];
        if !this.up || !this.joined {
            return;
        }
        // A session is given up when its answer is long overdue.
        let patience = Duration::from_millis(4 * (self.options.latency_ms + self.options.jitter_ms) + 1_000);
        let known = |n: &usize| {
            let running = this.sessions.get(n).is_some_and(|s| self.now.since(s.begun) < patience);
            let banned = this.banned.get(n).is_some_and(|until| *until > self.now);
            *n != host && !running && !banned && this.counts(&self.hosts[*n].id(), self.now)
        };
        let mut peers: Vec<usize> = (0..self.hosts.len()).filter(known).collect();
        for _ in 0..self.options.fanout {
            if peers.is_empty() {
                break;
            }
            let peer = peers.swap_remove(self.rng.random_range(0..peers.len()));
            self.sessions += 1;
            self.counts.sessions += 1;
            let (id, config) = (self.sessions, self.reconcile_config());
            let request = self.hosts[host].begin(peer, id, self.now, config);
            self.ask(host, peer, id, &request);
        }
    }

    /// A host outside knocks at a member's door with a ticket.
    pub(super) fn join(&mut self, host: usize) {
        if self.hosts[host].joined || self.healed {
            return;
        }
        let again = self.now + Duration::from_millis(self.options.span_ms / 10 + 1);
        self.queue.push(again, Event::Join { host });
        let door = self.someone().filter(|door| self.hosts[*door].honest && !self.is_parted(host, *door));
        let ticket = self.a_ticket();
        let (Some(door), Some(ticket), true) = (door, ticket, self.hosts[host].up) else { return };
        let (id, time) = (self.hosts[host].id(), self.hosts[host].clock(self.now));
        let kind = admit(id, time, Some(ticket.invite.id()));
        let admission = self.cast.sign(&ticket.key, time, None, kind);
        let envelopes = [ticket.invite, admission];
        self.note(&envelopes[1]);
        if self.knock(host, door, &envelopes) {
            self.counts.joins += 1;
            self.hosts[host].joined = true;
            self.admissions.insert(host, envelopes);
        }
    }

    /// Judges an admission at `door`, applies it there, and gives the newcomer what it needs to know members by.
    pub(super) fn knock(&mut self, host: usize, door: usize, envelopes: &[Envelope; 2]) -> bool {
        let [invite, admission] = envelopes;
        let clock = self.hosts[door].clock(self.now);
        let mut scratch = self.hosts[door].ledger.clone();
        let (Ok(invited), Ok(admitted)) = (scratch.check(invite), scratch.check(admission)) else {
            return false;
        };
        scratch.apply(invited);
        if scratch.may_join(&admitted, clock).is_err() {
            return false;
        }
        scratch.apply(admitted);
        if !scratch.is_member(&self.hosts[host].id(), clock) {
            return false;
        }
        let effective = |e: &&Envelope| scratch.status(&e.id()) == Some(Status::Effective);
        let new: Vec<Vec<u8>> = envelopes.iter().filter(effective).map(Envelope::to_json).collect();
        self.inject(door, &new);
        let ledger = &self.hosts[door].ledger;
        let known: Vec<Vec<u8>> =
            ledger.statements().filter_map(|id| ledger.envelope(&id)).map(Envelope::to_json).collect();
        let ingested = self.hosts[host].ingest(&known);
        self.ingested(host, Some(door), ingested);
        true
    }

    pub(super) fn is_parted(&self, a: usize, b: usize) -> bool {
        self.parts.as_ref().is_some_and(|parts| parts[a] != parts[b])
    }
}
