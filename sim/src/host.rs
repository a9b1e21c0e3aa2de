//! One simulated host: what is on its disk, what it is asked for, and the daemon's own scheduler.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use weighlock_protocol::swarm::{Fault, FetchConfig, LayerWant, SimpleFetch, SlotId};
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet, all_groups, bytes_in};
use weighlock_protocol::{KeyId, LayerId, Time};

use crate::network::FlowId;

/// What a host does in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Holds everything from the start.
    Seed,
    /// Holds nothing and wants everything.
    Fetcher,
    /// Holds everything and serves wrong bytes.
    Liar,
}

/// A request for a range, as it travels and waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub by: usize,
    /// In which life of it.
    pub epoch: u32,
    /// Its name for the fetch.
    pub slot: SlotId,
    /// Of which layer, by number.
    pub layer: usize,
    /// Groups.
    pub range: Range<u64>,
}

/// What comes back for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// Groups that arrived whole.
    pub range: Range<u64>,
    /// The group among them that the sender spoiled.
    pub bad: Option<u64>,
    /// Bytes that arrived.
    pub bytes: u64,
    /// Why no more arrived.
    pub fault: Option<Fault>,
}

/// A fetch that waits for its payload.
#[derive(Debug)]
pub struct Asked {
    /// Of whom.
    pub from: usize,
    /// Of which layer, by number.
    pub layer: usize,
    /// Groups.
    pub range: Range<u64>,
    /// The transfer, once it runs.
    pub flow: Option<FlowId>,
}

/// A host.
#[derive(Debug)]
pub struct Host {
    /// Its key.
    pub key: KeyId,
    /// What it does.
    pub role: Role,
    /// False between a crash and the restart.
    pub online: bool,
    /// Counts its lives; messages of an earlier one are void.
    pub epoch: u32,
    /// On its disk: proven groups by layer. Survives a crash.
    pub have: Vec<GroupSet>,
    /// Stored and not yet told to the neighbours.
    pub fresh: Vec<GroupSet>,
    /// An announcement is under way.
    pub announce_due: bool,
    /// The scheduler, while something is missing.
    pub fetch: Option<SimpleFetch>,
    /// Fetches without an answer.
    pub asked: BTreeMap<SlotId, Asked>,
    /// Uploads that run.
    pub uploads: usize,
    /// Requests that wait for an upload to end.
    pub waiting: VecDeque<Request>,
    /// Whom it is connected to.
    pub neighbours: Vec<usize>,
    /// When its scheduler wants to be woken.
    pub wake: Option<Time>,
    /// When it had everything.
    pub finished: Option<Time>,
}

impl Host {
    /// Host number `index` of a cluster that shares `layers`.
    pub fn new(index: usize, role: Role, layers: &[(LayerId, u64)]) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&(index as u64).to_be_bytes());
        let have = |size: &u64| match role {
            Role::Fetcher => GroupSet::empty(),
            Role::Seed | Role::Liar => all_groups(*size),
        };
        Self {
            key: KeyId(key),
            role,
            online: true,
            epoch: 0,
            have: layers.iter().map(|(_, size)| have(size)).collect(),
            fresh: vec![GroupSet::empty(); layers.len()],
            announce_due: false,
            fetch: None,
            asked: BTreeMap::new(),
            uploads: 0,
            waiting: VecDeque::new(),
            neighbours: Vec::new(),
            wake: None,
            finished: None,
        }
    }

    /// Number of the host that a key names.
    pub fn index_of(key: &KeyId) -> usize {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&key.0[..8]);
        usize::try_from(u64::from_be_bytes(bytes)).unwrap_or(usize::MAX)
    }

    /// Starts its scheduler on what its disk lacks.
    pub fn begin(&mut self, config: FetchConfig, seed: u64, layers: &[(LayerId, u64)]) {
        if self.role != Role::Fetcher || self.finished.is_some() {
            return;
        }
        let want = |((layer, size), have): (&(LayerId, u64), &GroupSet)| LayerWant {
            layer: *layer,
            size: *size,
            missing: &all_groups(*size) - have,
        };
        let wants = layers.iter().zip(&self.have).map(want).collect();
        self.fetch = Some(SimpleFetch::new(config, seed, wants));
    }

    /// Everything in memory is lost.
    pub fn crash(&mut self) {
        self.online = false;
        self.epoch += 1;
        self.fetch = None;
        self.wake = None;
        self.asked.clear();
        self.waiting.clear();
        self.uploads = 0;
        self.announce_due = false;
        self.fresh.fill(GroupSet::empty());
    }

    /// Bytes that its disk lacks.
    pub fn missing_bytes(&self, layers: &[(LayerId, u64)]) -> u64 {
        let lacks =
            |((_, size), have): (&(LayerId, u64), &GroupSet)| bytes_in(&(&all_groups(*size) - have), *size);
        layers.iter().zip(&self.have).map(lacks).sum()
    }

    /// Proves what arrived group by group and stores it up to the first group that fails. Returns what it stored
    /// and why that is not the whole.
    pub fn receive(&mut self, layer: usize, payload: &Payload) -> (Range<u64>, Option<Fault>) {
        let (mut stored, mut fault) = (payload.range.clone(), payload.fault);
        if let Some(bad) = payload.bad.filter(|bad| stored.contains(bad)) {
            stored.end = bad;
            fault = Some(Fault::Verify);
        }
        if !stored.is_empty() {
            let news = GroupSet::from(stored.clone());
            self.have[layer] |= news.clone();
            self.fresh[layer] |= news;
        }
        (stored, fault)
    }

    /// True if it can serve the whole range.
    pub fn holds(&self, layer: usize, range: &Range<u64>) -> bool {
        GroupSet::from(range.clone()).is_subset(&self.have[layer])
    }
}

/// The groups of `range` that are whole after `moved` of its bytes. `bytes` is the length of all of it.
pub fn whole_groups(range: &Range<u64>, bytes: u64, moved: u64) -> Range<u64> {
    if moved >= bytes {
        return range.clone();
    }
    range.start..(range.start + moved / GROUP_BYTES).min(range.end)
}
