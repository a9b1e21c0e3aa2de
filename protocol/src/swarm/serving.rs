//! Serving: who is promised which upload, what waits, what runs.
//!
//! An upload is a job: promised to a neighbour by a grant, waiting once its request is here, running once a slot is
//! free. Requests without a promise make jobs that only wait and run.

use std::ops::Range;
use std::time::Duration;

use smallvec::SmallVec;

use super::Swarm;
use super::bucket::Bucket;
use super::choosing::Choice;
use super::conduct::Seat;
use super::io::{Action, Charge, LinkId, PieceNo, RequestId, WorkId};
use super::timers::Due;
use super::uploads::{Job, State};
use super::work::Work;
use crate::id::{KeyId, LayerId};
use crate::time::Time;
use crate::wire::bao::{GROUP_BYTES, group_count};
use crate::wire::swarm::Frame;

/// Requests under one promise: the files of a bundle, or ranges around what the asker has.
const PARTS_MAX: usize = 2 * super::BUNDLE_LAYERS_MAX;

/// The pause after a neighbour declined doubles with so many times in a row.
const DECLINES_ALIKE: u32 = 8;

/// Groups that a request for a layer of no manifest here counts for, at most: 1 TiB.
const UNKNOWN_GROUPS_MAX: u64 = 1 << 26;

fn bytes_of(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start).saturating_mul(GROUP_BYTES)
}

impl Swarm {
    /// A peer asks for groups of a layer.
    pub(super) fn asked(&mut self, request: RequestId, peer: KeyId, layer: &LayerId, range: &Range<u64>) {
        let now = self.now;
        // What a peer says of the end of a layer is not believed: rates and budgets follow from it.
        let of_layer = |work: &Work| {
            Some(group_count(work.pieces.space.layer_size(work.pieces.space.layer_index(layer)?)))
        };
        let end = self.works.values().find_map(of_layer).unwrap_or(UNKNOWN_GROUPS_MAX);
        let range = &(range.start.min(end)..range.end.min(end));
        let job = self.promised_job(&peer, layer, range);
        if job.is_none() && !self.may_wait(peer) {
            return self.act(Action::Refuse { request });
        }
        let number = job.unwrap_or_else(|| {
            self.peers.of(&self.config, now, peer).requests += 1;
            let number = self.uploads.next;
            self.uploads.next += 1;
            let job = Job {
                peer,
                seat: Seat::default(),
                link: None,
                work: None,
                piece: None,
                release: false,
                overdue: false,
                urgent: false,
                state: State::Waiting,
                requests: SmallVec::new(),
                ranges: SmallVec::new(),
                sent_bytes: 0,
                complete: true,
                since: now,
            };
            self.uploads.jobs.push(number, job);
            self.uploads.unpromised.push_back(number);
            number
        });
        self.uploads.by_request.push((request, number, 0));
        let Some(job) = self.uploads.jobs.get_mut(number) else {
            return;
        };
        job.requests.push(request);
        job.ranges.push((request, *layer, range.clone()));
        let bytes = bytes_of(range);
        match job.state {
            State::Promised => {
                job.state = State::Waiting;
                self.timers.clear(Due::Promise(number));
                if job.urgent {
                    self.uploads.waiting.push_front(number);
                } else {
                    self.uploads.waiting.push_back(number);
                }
            }
            State::Waiting => {}
            // One more file of a bundle.
            State::Running => self.serve(request, peer, bytes),
        }
        self.start_waiting();
    }

    /// True if a request without a promise may wait. Who goes on asking after many refusals is banned.
    fn may_wait(&mut self, peer: KeyId) -> bool {
        let all: usize = self.uploads.unpromised.len() + self.uploads.running_unpromised;
        let conduct = self.peers.of(&self.config, self.now, peer);
        if all < self.config.requests_max && conduct.requests < self.config.requests_per_peer_max {
            return true;
        }
        conduct.refused += 1;
        if conduct.refused > self.config.refusals_max {
            conduct.refused = 0;
            self.punish(peer, Charge::Flood);
        }
        false
    }

    /// The job that a request belongs to: one that is promised, or one more part of its piece.
    fn promised_job(&mut self, peer: &KeyId, layer: &LayerId, range: &Range<u64>) -> Option<u64> {
        let mut open = None;
        let group = range.start;
        for (number, job) in self.uploads.jobs.iter_mut().filter(|(_, job)| job.peer == *peer) {
            let Some(work) = job.work.and_then(|work| self.works.get(&work)) else { continue };
            let at =
                work.pieces.space.layer_index(layer).and_then(|at| work.pieces.space.piece_at(at, group));
            let Some((piece, _)) = at else { continue };
            let asked = |(_, other, asked): &(RequestId, LayerId, Range<u64>)| {
                other == layer && asked.start < range.end && range.start < asked.end
            };
            if job.ranges.len() >= PARTS_MAX || job.ranges.iter().any(asked) {
                continue;
            }
            if job.piece == Some(piece) {
                return Some(number);
            }
            if job.piece.is_none() && job.state == State::Promised && open.is_none() {
                open = Some((number, piece));
            }
        }
        let (number, piece) = open?;
        self.uploads.jobs.get_mut(number)?.piece = Some(piece);
        Some(number)
    }

    fn serve(&mut self, request: RequestId, peer: KeyId, bytes: u64) {
        let now = self.now;
        // Rates are charged for a piece at most. The rest comes with the end, for nobody knows how much will be sent.
        let bytes = bytes.min(self.config.piece_bytes_max);
        if let Some((.., charged)) = self.uploads.by_request.iter_mut().find(|(other, ..)| *other == request)
        {
            *charged = bytes;
        }
        if let Some(bucket) = &mut self.uploads.bucket {
            bucket.take(now, bytes);
        }
        if let Some(rate) = self.config.upload_per_peer_bytes_per_s {
            let conduct = self.peers.of(&self.config, now, peer);
            let bucket = || Box::new(Bucket::new(rate, rate / 4, now));
            conduct.uploads.get_or_insert_with(bucket).take(now, bytes);
        }
        self.act(Action::Serve { request });
    }

    /// A request ended, served or not.
    pub(super) fn served(&mut self, request: RequestId, bytes: u64, complete: bool) {
        let by_request = &mut self.uploads.by_request;
        let Some(at) = by_request.iter().position(|(other, ..)| *other == request) else {
            return;
        };
        let (_, number, charged) = by_request.swap_remove(at);
        if let Some(bucket) = &mut self.uploads.bucket {
            bucket.settle(self.now, charged, bytes);
        }
        let Some(job) = self.uploads.jobs.get_mut(number) else {
            return;
        };
        if self.config.upload_per_peer_bytes_per_s.is_some()
            && let Some(bucket) = self.peers.get_mut(&job.peer).and_then(|conduct| conduct.uploads.as_mut())
        {
            bucket.settle(self.now, charged, bytes);
        }
        job.requests.retain(|other| *other != request);
        job.sent_bytes += bytes;
        job.complete &= complete;
        if job.work.is_none()
            && let Some(conduct) = self.peers.get_mut(&job.peer)
        {
            conduct.requests = conduct.requests.saturating_sub(1);
            if bytes > 0 {
                conduct.refused = 0;
            }
        }
        if job.requests.is_empty() {
            self.end_job(number);
        }
    }

    fn end_job(&mut self, number: u64) {
        let Some(job) = self.uploads.jobs.remove(number) else {
            return;
        };
        match job.state {
            State::Running => {
                self.uploads.running -= 1;
                self.uploads.running_unpromised -= usize::from(job.work.is_none());
            }
            State::Promised | State::Waiting => {
                self.timers.clear(Due::Promise(number));
                self.uploads.waiting.retain(|other| *other != number);
                self.uploads.unpromised.retain(|other| *other != number);
                self.uploads.ahead -= usize::from(job.work.is_some());
            }
        }
        if job.state == State::Running {
            self.pace(job.since);
            let took = self.now.since(job.since);
            let whole = job.work.and_then(|work| self.works.get(&work)).is_some_and(|work| {
                // A short piece says nothing of others.
                job.sent_bytes * 2 >= work.pieces.space.piece_bytes()
            });
            if job.complete
                && whole
                && let Some(conduct) = self.peers.near_mut(job.seat, &job.peer)
            {
                conduct.taken(job.sent_bytes, took);
            }
            if job.release && job.complete && whole {
                self.uploads.release_took =
                    Some(self.uploads.release_took.map_or(took, |old| old * 7 / 8 + took / 8));
                self.release_overdue();
            }
        }
        // Longer than its news takes.
        let again = (self.pace * 64).clamp(Duration::from_millis(100), Duration::from_secs(2));
        if let Some(work) = job.work.and_then(|work| self.works.get_mut(&work)) {
            work.sent_bytes += job.sent_bytes;
            if let Some(link) = job.link.and_then(|link| work.find_mut(link)) {
                link.jobs = link.jobs.saturating_sub(1);
                if job.complete && job.state == State::Running {
                    link.one_less();
                    link.declines = 0;
                }
            }
            // Of an overdue one the piece is released to another by now.
            if let (true, Some(piece)) = (job.release && !job.overdue, job.piece) {
                if job.complete && job.sent_bytes > 0 {
                    // Its news is on the way.
                    let due = Due::Release(work.id, piece);
                    self.timers.set(due, self.now + again);
                } else {
                    work.release_again(piece);
                }
            }
        }
        self.uploads_dirty = true;
        self.start_waiting();
    }

    /// Releases anew what a slow host takes far longer for than others: it would be as slow in passing it on.
    fn release_overdue(&mut self) {
        let Some(usual) = self.uploads.release_took else {
            return;
        };
        let most = usual.saturating_mul(self.config.release_overdue_factor);
        for (_, job) in self.uploads.jobs.iter_mut() {
            let took = self.now.since(job.since);
            if !job.release || job.overdue || job.state != State::Running || took < most {
                continue;
            }
            job.overdue = true;
            let bytes =
                job.ranges.iter().fold(0, |sum: u64, (_, _, range)| sum.saturating_add(bytes_of(range)));
            if let Some(conduct) = self.peers.get_mut(&job.peer) {
                // At best.
                conduct.taken(bytes, took);
            }
            let work = job.work.and_then(|work| self.works.get_mut(&work));
            if let Some((work, piece)) = work.zip(job.piece) {
                work.release_again(piece);
            }
        }
    }

    /// A promise was not used in time.
    pub(super) fn promise_late(&mut self, number: u64) {
        let pause = Duration::from_millis(self.config.declined_ms);
        if let Some(job) = self.uploads.jobs.get(number).filter(|job| job.state == State::Promised) {
            let (work, link) = (job.work, job.link);
            let entry = work.and_then(|work| self.works.get_mut(&work)).zip(link);
            if let Some(link) = entry.and_then(|(work, link)| work.find_mut(link)) {
                link.declines = link.declines.saturating_add(1);
            }
            self.hush(link, work, pause);
            self.end_job(number);
        }
    }

    /// A neighbour has no use for a promise.
    pub(super) fn declined(&mut self, link: LinkId, piece: Option<PieceNo>) {
        let now = self.now;
        let promised =
            |job: &Job| job.link == Some(link) && job.state == State::Promised && job.piece == piece;
        let number = self.uploads.jobs.iter().find(|(_, job)| promised(job)).map(|(number, _)| *number);
        let Some(number) = number else {
            return;
        };
        let work = self.uploads.jobs.get(number).and_then(|job| job.work);
        let entry = work.and_then(|work| self.works.get_mut(&work)).and_then(|work| work.find_mut(link));
        // Who declines again and again, because its disk is full, say, is not to be flooded with offers.
        let in_row = entry.map_or(0, |link| {
            // Several offers at once are declined at once, which says no more than one.
            let anew = link.declined_until <= now;
            link.declines = link.declines.saturating_add(u8::from(anew));
            u32::from(link.declines)
        });
        let pause = self.pace * 2u32.saturating_pow(1 + (in_row / DECLINES_ALIKE).min(16));
        let pause = pause.min(self.stale());
        self.hush(Some(link), work, pause);
        self.end_job(number);
    }

    fn hush(&mut self, link: Option<LinkId>, work: Option<WorkId>, pause: Duration) {
        let until = self.now + pause;
        let work = work.and_then(|work| self.works.get_mut(&work));
        if let Some(link) = work.zip(link).and_then(|(work, link)| work.find_mut(link)) {
            link.declined_until = link.declined_until.max(until);
        }
    }

    /// Its promises are void; what waits or runs goes on without one.
    pub(super) fn unpromise_link(&mut self, link: LinkId) {
        let of_link: Vec<u64> = self
            .uploads
            .jobs
            .iter()
            .filter(|(_, job)| job.link == Some(link) && job.state == State::Promised)
            .map(|(number, _)| *number)
            .collect();
        of_link.into_iter().for_each(|number| self.end_job(number));
    }

    pub(super) fn release_due(&mut self, id: WorkId, piece: PieceNo) {
        if let Some(work) = self.works.get_mut(&id) {
            work.release_again(piece);
            self.uploads_dirty = true;
        }
    }

    /// A neighbour asks for a piece by name.
    pub(super) fn wanted(&mut self, work: WorkId, at: usize, piece: PieceNo, urgent: bool) {
        let asks_max = self.config.asks_per_peer_max;
        let Some(work) = self.works.get_mut(&work) else {
            return;
        };
        let held = work.pieces.has_some(piece);
        let link = work.link_mut(at);
        link.more.asks.retain(|(other, _)| *other != piece);
        if link.more.asks.len() < asks_max && held {
            work.is_asked = true;
            let link = work.link_mut(at);
            if urgent {
                link.more.asks.push_front((piece, true));
            } else {
                link.more.asks.push_back((piece, false));
            }
            self.uploads_dirty = true;
        }
    }

    /// Starts what waits, as far as slots and rates allow.
    fn start_waiting(&mut self) {
        while self.uploads.running < self.uploads_max() {
            let promised = !self.uploads.waiting.is_empty();
            let unpromised = !self.uploads.unpromised.is_empty()
                && self.uploads.running_unpromised < self.config.unpromised_max.min(self.config.uploads_max);
            if !promised && !unpromised {
                return;
            }
            if let Some(at) = self.blocked_until() {
                self.timers.set_earlier(Due::Uploads, at);
                return;
            }
            let now = self.now;
            let (mut chosen, mut later) = (None, None::<Time>);
            let Self { uploads, peers, config, .. } = self;
            let queue = if promised { &uploads.waiting } else { &uploads.unpromised };
            for (at, number) in queue.iter().enumerate() {
                let Some(job) = uploads.jobs.get(*number) else { continue };
                let limited = config.upload_per_peer_bytes_per_s.is_some();
                let conduct = if limited { peers.get_mut(&job.peer) } else { None };
                let bucket = conduct.and_then(|conduct| conduct.uploads.as_mut());
                match bucket.map_or(now, |bucket| bucket.ready_at(now)) {
                    time if time <= now => {
                        chosen = Some((at, *number));
                        break;
                    }
                    time => later = Some(later.map_or(time, |old| old.min(time))),
                }
            }
            let Some((at, number)) = chosen else {
                if let Some(later) = later {
                    self.timers.set_earlier(Due::Uploads, later);
                }
                return;
            };
            if promised {
                self.uploads.waiting.remove(at);
            } else {
                self.uploads.unpromised.remove(at);
                self.uploads.running_unpromised += 1;
            }
            let Some(job) = self.uploads.jobs.get_mut(number) else { continue };
            job.state = State::Running;
            job.since = now;
            let peer = job.peer;
            let open = job.ranges.iter().filter(|(request, ..)| job.requests.contains(request));
            let requests: SmallVec<[(RequestId, u64); 2]> =
                open.map(|(request, _, range)| (*request, bytes_of(range))).collect();
            self.uploads.ahead -= usize::from(job.work.is_some());
            self.uploads.running += 1;
            for (request, bytes) in requests {
                self.serve(request, peer, bytes);
            }
        }
    }

    fn blocked_until(&mut self) -> Option<Time> {
        let now = self.now;
        self.uploads.bucket.as_mut().map(|bucket| bucket.ready_at(now)).filter(|at| *at > now)
    }

    /// Promises uploads to neighbours until the slots and the few ahead of them are taken.
    pub(super) fn fill_uploads(&mut self) {
        self.start_waiting();
        let most = self.uploads_max() + self.config.grants_ahead_max;
        while self.uploads.running + self.uploads.ahead < most {
            if let Some(at) = self.blocked_until() {
                self.timers.set_earlier(Due::Uploads, at);
                return;
            }
            let Some(choice) = self.choose() else {
                return;
            };
            self.promise(&choice);
        }
    }

    /// Uploads that may run at a time now.
    fn uploads_max(&self) -> usize {
        let releases = self.works.values().any(|work| !work.release.is_empty());
        if releases {
            self.config.uploads_release_max.max(self.config.uploads_max)
        } else {
            self.config.uploads_max
        }
    }

    fn promise(&mut self, choice: &Choice) {
        let Choice { work: work_id, link: at, piece, release, urgent } = *choice;
        let now = self.now;
        let Some(work) = self.works.get_mut(&work_id) else {
            return;
        };
        if let (true, Some(piece)) = (release, piece) {
            work.releasing(now, piece);
        }
        let link = work.link_mut(at);
        if let Some(piece) = piece {
            link.more.asks.retain(|(other, _)| *other != piece);
        }
        link.jobs += 1;
        let (peer, seat, link) = (link.peer, link.seat, link.id);
        if work.is_asked && piece.is_some() {
            work.is_asked = work.links().iter().any(|link| !link.more.asks.is_empty());
        }
        let job = Job {
            peer,
            seat,
            link: Some(link),
            work: Some(work_id),
            piece,
            release,
            overdue: false,
            urgent,
            state: State::Promised,
            requests: SmallVec::new(),
            ranges: SmallVec::new(),
            sent_bytes: 0,
            complete: true,
            since: now,
        };
        let number = self.uploads.next;
        self.uploads.next += 1;
        self.uploads.ahead += 1;
        self.uploads.jobs.push(number, job);
        self.timers.set(Due::Promise(number), now + Duration::from_millis(self.config.grant_ms));
        self.send_with_news(work_id, at, Frame::Grant { piece });
    }
}
