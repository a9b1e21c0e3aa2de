//! A naive model of hosts, network and disks around real swarms: every rule that is asked of a swarm is asserted here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rand::RngExt;

use super::*;
use crate::wire::bao::{all_groups, bounded, bytes_in};

/// How a host of the model behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Honest,
    /// Sends wrong bytes, one time in so many.
    Liar(u32),
    /// Declares all, has what it has.
    Boaster,
    /// Grants and never sends.
    Mute,
    /// Declares what it has and never grants.
    Silent,
}

/// One request on its way or being served.
#[derive(Debug, Clone)]
struct Request {
    by: usize,
    slot: SlotId,
    layer: LayerId,
    range: Range<u64>,
}

#[derive(Debug)]
struct Fetch {
    from: usize,
    open: BTreeSet<RequestId>,
    parts: Vec<(LayerId, GroupSet)>,
    stored: Vec<(LayerId, GroupSet)>,
    fault: Option<Fault>,
    cancelled: bool,
    bytes: u64,
}

#[derive(Debug)]
enum Happening {
    Connect { work: WorkId, by: usize, to: usize },
    Frame { to: usize, link: LinkId, frame: Frame },
    Down { to: usize, link: LinkId },
    Ask { to: usize, id: RequestId },
    End { id: RequestId },
}

pub(super) struct Host {
    pub(super) swarm: Swarm,
    kind: Kind,
    rack: Option<RackId>,
    disk: BTreeMap<LayerId, GroupSet>,
    fetches: BTreeMap<SlotId, Fetch>,
    /// Link to the other host's index and link.
    links: BTreeMap<LinkId, (usize, LinkId, WorkId)>,
    pub(super) banned: BTreeMap<usize, Time>,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) events: Vec<Event>,
    next_link: u32,
}

/// The world of one case.
pub(super) struct Model {
    pub(super) now: Time,
    pub(super) hosts: Vec<Host>,
    pub(super) config: SwarmConfig,
    layers: BTreeMap<LayerId, u64>,
    works: BTreeMap<WorkId, Vec<LayerId>>,
    rng: ChaCha8Rng,
    queue: BTreeMap<(Time, u64), Happening>,
    requests: BTreeMap<RequestId, (usize, Request)>,
    next: u64,
    /// Requests lost, of a hundred.
    pub(super) loss_percent: u32,
}

pub(super) fn key(index: usize) -> KeyId {
    KeyId([u8::try_from(index).expect("few hosts"); 32])
}

pub(super) fn layer(n: u8) -> LayerId {
    LayerId([n; 32])
}

impl Model {
    pub(super) fn new(seed: u64, config: SwarmConfig, layers: &[u64]) -> Self {
        Self {
            now: Time(1),
            hosts: Vec::new(),
            config,
            layers: (0..).zip(layers).map(|(n, size)| (layer(n), *size)).collect(),
            works: BTreeMap::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            queue: BTreeMap::new(),
            requests: BTreeMap::new(),
            next: 0,
            loss_percent: 0,
        }
    }

    pub(super) fn work(&mut self, work: u32, layers: &[u8]) {
        self.works.insert(WorkId(work), layers.iter().map(|n| layer(*n)).collect());
    }

    /// Adds a host that has these layers whole.
    pub(super) fn host(&mut self, kind: Kind, rack: Option<u64>, has: &[u8]) -> usize {
        let index = self.hosts.len();
        let rack = rack.map(RackId);
        let seed = self.rng.random_range(0..u64::MAX);
        let disk = has.iter().map(|n| (layer(*n), all_groups(self.layers[&layer(*n)]))).collect();
        self.hosts.push(Host {
            swarm: Swarm::new(self.config.clone(), seed, key(index), rack),
            kind,
            rack,
            disk,
            fetches: BTreeMap::new(),
            links: BTreeMap::new(),
            banned: BTreeMap::new(),
            received_bytes: 0,
            sent_bytes: 0,
            events: Vec::new(),
            next_link: 0,
        });
        index
    }

    pub(super) fn open(&mut self, host: usize, work: u32) {
        let work = WorkId(work);
        let wants = self.works[&work].iter().map(|layer| {
            let size = self.layers[layer];
            let have = self.hosts[host].disk.get(layer).cloned().unwrap_or_else(GroupSet::empty);
            let missing = match self.hosts[host].kind {
                Kind::Boaster => GroupSet::empty(),
                _ => &all_groups(size) - &have,
            };
            LayerWant { layer: *layer, size, missing }
        });
        let layers = wants.collect();
        self.tell(host, Input::Open { work, layers });
    }

    /// Tells everyone of everyone who takes part.
    pub(super) fn introduce(&mut self, work: u32) {
        let work = WorkId(work);
        for host in 0..self.hosts.len() {
            let others = (0..self.hosts.len()).filter(|other| *other != host);
            let hosts = others
                .map(|other| Candidate {
                    peer: key(other),
                    rack: self.hosts[other].rack,
                    complete: self.hosts[other].swarm.is_complete(work),
                })
                .collect();
            self.tell(host, Input::Candidates { work, hosts });
        }
    }

    pub(super) fn tell(&mut self, host: usize, input: Input) {
        self.hosts[host].swarm.handle(self.now, input);
        self.drain(host);
    }

    /// One of the host's fetches ends by the host's own disk.
    pub(super) fn fail(&mut self, host: usize, fault: Fault) {
        let slot = *self.hosts[host].fetches.keys().next().expect("something is in flight");
        let fetch = self.hosts[host].fetches.remove(&slot).expect("as above");
        self.tell(host, Input::Failed { slot, fault, stored: fetch.stored });
    }

    /// Groups of a layer go bad on a host's disk.
    pub(super) fn rot(&mut self, host: usize, layer: LayerId, groups: GroupSet) {
        let disk = self.hosts[host].disk.get_mut(&layer).expect("it has the layer");
        disk.difference_with(&groups);
        self.tell(host, Input::Shrunk { layer, groups });
    }

    /// Runs until `done`, at most for so many seconds. True if it was reached.
    pub(super) fn run(&mut self, seconds: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + Duration::from_secs(seconds);
        while !done(self) {
            let wake = self.hosts.iter().filter_map(|host| host.swarm.timers.next()).min();
            let next = self.queue.keys().next().map(|(at, _)| *at);
            let Some(at) = wake.into_iter().chain(next).min() else { return false };
            if at > end {
                return false;
            }
            self.now = self.now.max(at);
            if next.is_some_and(|next| next <= self.now) {
                let (_, happening) = self.queue.pop_first().expect("it is there");
                self.happen(happening);
            } else {
                for host in 0..self.hosts.len() {
                    if self.hosts[host].swarm.timers.next().is_some_and(|at| at <= self.now) {
                        self.tell(host, Input::Tick);
                    }
                }
            }
        }
        true
    }

    pub(super) fn all_complete(&self, work: u32) -> bool {
        let honest = self.hosts.iter().filter(|host| host.kind == Kind::Honest);
        let mut honest = honest.filter(|host| host.swarm.works.contains_key(&WorkId(work)));
        honest.all(|host| host.swarm.is_complete(WorkId(work)))
    }

    /// What a host is at agrees with its disk.
    pub(super) fn check_disks(&self) {
        // What came of a fetch is on the disk before its swarm hears of it; honest hosts have ended theirs.
        let at_rest = |host: &&Host| match host.kind {
            Kind::Boaster => false,
            Kind::Silent => host.fetches.is_empty(),
            _ => true,
        };
        for host in self.hosts.iter().filter(at_rest) {
            for work in host.swarm.works.values() {
                let id = &work.id;
                let missing: u64 = self.works[id]
                    .iter()
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .map(|layer| {
                        let size = self.layers[layer];
                        let have = host.disk.get(layer).cloned().unwrap_or_else(GroupSet::empty);
                        size - bytes_in(&have, size)
                    })
                    .sum();
                assert_eq!(work.pieces.missing_bytes(), missing, "bytes missing of {id:?}");
                for link in work.links() {
                    let lacks = work.pieces.held().iter().filter(|p| !link.have().contains(*p)).count();
                    assert_eq!(
                        work.is_useful(link, 0),
                        lacks > link.jobs as usize,
                        "useful pieces for a link"
                    );
                }
            }
        }
    }

    fn is_banned(&self, by: usize, host: usize) -> bool {
        self.hosts[by].banned.get(&host).is_some_and(|until| *until > self.now)
    }

    fn push(&mut self, delay_us: Range<u64>, happening: Happening) {
        let at = self.now + Duration::from_micros(self.rng.random_range(delay_us));
        self.next += 1;
        self.queue.insert((at, self.next), happening);
    }

    fn drain(&mut self, host: usize) {
        loop {
            match self.hosts[host].swarm.poll() {
                Poll::Action(action) => self.act(host, action),
                Poll::Event(event) => self.hosts[host].events.push(event),
                Poll::Idle { wake } => {
                    assert!(wake.is_none_or(|at| at > self.now), "nothing due is left");
                    break;
                }
            }
        }
        let (config, swarm) = (&self.config, &self.hosts[host].swarm);
        let (running, promised, requests) = swarm.uploads();
        let most = config.uploads_release_max.max(config.uploads_max);
        assert!(running <= most);
        assert!(promised <= most + config.grants_ahead_max);
        assert!(requests <= config.requests_max);
        assert!(swarm.slots_in_flight() <= config.downloads_max);
        for work in swarm.works.values() {
            assert!(work.links().len() <= config.neighbours_max);
        }
    }

    fn act(&mut self, host: usize, action: Action) {
        match action {
            Action::Connect { work, peer } => {
                let to = usize::from(peer.0[0]);
                assert!(!self.is_banned(host, to), "connects to a banned host");
                self.push(100..1_000, Happening::Connect { work, by: host, to });
            }
            Action::Disconnect { link } => {
                if let Some((to, theirs, _)) = self.hosts[host].links.remove(&link) {
                    self.push(100..101, Happening::Down { to, link: theirs });
                }
            }
            Action::Send { link, frame } => self.send(host, link, frame),
            Action::Broadcast { links, frame } => {
                for link in links {
                    self.send(host, link, frame.clone());
                }
            }
            Action::Fetch { slot, from, parts, deadline, work } => {
                assert!(deadline > self.now && !parts.is_empty());
                self.fetch(host, slot, usize::from(from.0[0]), work, parts);
            }
            Action::Cancel { slot } => {
                let fetch = self.hosts[host].fetches.get_mut(&slot).expect("only what flies is cancelled");
                assert!(!fetch.cancelled, "cancelled once");
                fetch.cancelled = true;
                fetch.fault.get_or_insert(Fault::Cancelled);
                let ending = RequestId(u64::MAX - ((host as u64) << 40) - slot.0);
                for id in std::mem::take(&mut fetch.open) {
                    self.push(50..60, Happening::End { id });
                }
                self.push(10..20, Happening::End { id: ending });
                self.requests
                    .insert(ending, (host, Request { by: host, slot, layer: layer(0), range: 0..0 }));
            }
            Action::Serve { request } => {
                let (server, _) = self.requests[&request].clone();
                assert_eq!(server, host);
                if self.hosts[host].kind != Kind::Mute {
                    self.push(500..40_000, Happening::End { id: request });
                }
            }
            Action::Refuse { request } => {
                let (_, asked) = self.requests.remove(&request).expect("it was asked");
                self.part_ended(&asked, request, GroupSet::empty(), Some(Fault::Miss));
            }
            Action::Ban { peer, charge, until } => {
                assert!(until > self.now);
                let peer = usize::from(peer.0[0]);
                assert_ne!(self.hosts[peer].kind, Kind::Honest, "{host} banned the honest {peer}: {charge}");
                self.hosts[host].banned.insert(peer, until);
            }
        }
    }

    fn send(&mut self, host: usize, link: LinkId, frame: Frame) {
        if self.hosts[host].kind == Kind::Silent && matches!(frame, Frame::Grant { .. }) {
            return;
        }
        let bytes = frame.encode();
        assert_eq!(Frame::parse(&bytes[4..]), Ok(Some(frame.clone())), "frames travel");
        if let Some((to, theirs, _)) = self.hosts[host].links.get(&link).copied() {
            // The same delay for all, so that frames of a link stay in order.
            self.push(300..301, Happening::Frame { to, link: theirs, frame });
        }
    }

    fn fetch(
        &mut self,
        host: usize,
        slot: SlotId,
        from: usize,
        work: WorkId,
        parts: Vec<(LayerId, GroupSet)>,
    ) {
        assert!(!self.is_banned(host, from), "asks a banned host");
        let mut open = BTreeSet::new();
        for (layer, groups) in &parts {
            let none = GroupSet::empty();
            let have = self.hosts[host].disk.get(layer).unwrap_or(&none);
            // What a fetch in flight has stored is not known before its end; only a hedge asks for it again.
            let hedges = self.hosts[host].fetches.values().any(|fetch| {
                fetch.parts.iter().any(|(other, asked)| other == layer && !asked.is_disjoint(groups))
            });
            assert!(hedges || groups.is_disjoint(have), "asks for what is stored");
            assert!(!groups.is_empty() && self.works[&work].contains(layer));
            for range in bounded(groups, self.layers[layer]) {
                self.next += 1;
                let id = RequestId(self.next);
                open.insert(id);
                let request = Request { by: host, slot, layer: *layer, range };
                self.requests.insert(id, (from, request));
                self.push(300..400, Happening::Ask { to: from, id });
            }
        }
        let fetch = Fetch { from, open, parts, stored: Vec::new(), fault: None, cancelled: false, bytes: 0 };
        assert!(self.hosts[host].fetches.insert(slot, fetch).is_none(), "slots are never used twice");
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Connect { work, by, to } => {
                let taking = self.hosts[to].swarm.works.contains_key(&work);
                if !taking || self.rng.random_ratio(1, 10) {
                    return self.tell(by, Input::ConnectFailed { work, peer: key(to) });
                }
                let mut ids = [LinkId(0); 2];
                for (id, host) in ids.iter_mut().zip([by, to]) {
                    *id = LinkId(self.hosts[host].next_link);
                    self.hosts[host].next_link += 1;
                }
                self.hosts[by].links.insert(ids[0], (to, ids[1], work));
                self.hosts[to].links.insert(ids[1], (by, ids[0], work));
                for (at, host, other) in [(0, by, to), (1, to, by)] {
                    let rack = self.hosts[other].rack;
                    let up = Input::LinkUp { link: ids[at], work, peer: key(other), rack, ours: at == 0 };
                    self.tell(host, up);
                }
            }
            Happening::Frame { to, link, frame } => {
                if self.hosts[to].links.contains_key(&link) {
                    self.tell(to, Input::Frame { link, frame });
                }
            }
            Happening::Down { to, link } => {
                if self.hosts[to].links.remove(&link).is_some() {
                    self.tell(to, Input::LinkDown { link });
                }
            }
            Happening::Ask { to, id } => {
                let Some((_, request)) = self.requests.get(&id).cloned() else { return };
                if !self.hosts[request.by].fetches.contains_key(&request.slot) {
                    self.requests.remove(&id);
                    return;
                }
                let Request { by, layer, range, .. } = request;
                self.tell(to, Input::Asked { request: id, peer: key(by), layer, range });
            }
            Happening::End { id } => self.end(id),
        }
    }

    fn end(&mut self, id: RequestId) {
        let Some((server, request)) = self.requests.remove(&id) else { return };
        if request.range.is_empty() {
            return self.answer(request.by, request.slot);
        }
        let groups = GroupSet::from(request.range.clone());
        let none = GroupSet::empty();
        let have = self.hosts[server].disk.get(&request.layer).unwrap_or(&none).clone();
        let open = self.hosts[request.by].fetches.get(&request.slot).is_some_and(|f| f.open.contains(&id));
        let cut = self.rng.random_ratio(self.loss_percent, 100) || !open;
        let lies = matches!(self.hosts[server].kind, Kind::Liar(one_in) if self.rng.random_ratio(1, one_in));
        let (stored, fault) = if lies {
            (none, Some(Fault::Verify))
        } else if !groups.is_subset(&have) {
            (none, Some(Fault::Miss))
        } else if cut {
            let end = self.rng.random_range(request.range.start..request.range.end);
            (GroupSet::from(request.range.start..end), Some(Fault::Lost))
        } else {
            (groups, None)
        };
        let bytes = bytes_in(&stored, self.layers[&request.layer]);
        self.hosts[server].sent_bytes += bytes;
        self.tell(server, Input::Served { request: id, bytes, complete: fault.is_none() });
        if open {
            self.part_ended(&request, id, stored, fault);
        }
    }

    fn part_ended(&mut self, request: &Request, id: RequestId, stored: GroupSet, fault: Option<Fault>) {
        let size = self.layers[&request.layer];
        let host = &mut self.hosts[request.by];
        let Some(fetch) = host.fetches.get_mut(&request.slot) else { return };
        fetch.open.remove(&id);
        if !stored.is_empty() {
            assert!(!fetch.cancelled);
            let bytes = bytes_in(&stored, size);
            fetch.bytes += bytes;
            host.received_bytes += bytes;
            *host.disk.entry(request.layer).or_insert_with(GroupSet::empty) |= stored.clone();
            fetch.stored.push((request.layer, stored));
        }
        if let Some(fault) = fault {
            fetch.fault = Some(fetch.fault.map_or(fault, |old| old.min(fault)));
        }
        if fetch.open.is_empty() && !fetch.cancelled {
            self.answer(request.by, request.slot);
        }
    }

    fn answer(&mut self, host: usize, slot: SlotId) {
        let Some(fetch) = self.hosts[host].fetches.remove(&slot) else { return };
        if fetch.fault == Some(Fault::Verify) {
            assert!(matches!(self.hosts[fetch.from].kind, Kind::Liar(_)));
        }
        let input = match fetch.fault {
            Some(fault) => Input::Failed { slot, fault, stored: fetch.stored },
            None => {
                let asked: u64 =
                    fetch.parts.iter().map(|(layer, groups)| bytes_in(groups, self.layers[layer])).sum();
                assert_eq!(asked, fetch.bytes);
                Input::Stored { slot, bytes: fetch.bytes }
            }
        };
        self.tell(host, input);
    }
}
