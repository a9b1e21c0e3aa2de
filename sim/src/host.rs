//! One simulated host: the daemon's own state machine, its disk, its links, and what it has under way.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;
use weighlock_protocol::swarm::{Fault, RackId, SlotId, Space, Swarm, SwarmConfig};
use weighlock_protocol::{KeyId, Time};

use crate::cast::Player;
use crate::disk::Disk;
use crate::layout::Layout;

/// One side of a stream between neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The host on the other side.
    pub peer: u32,
    /// The number of the link there.
    pub peer_link: u32,
    /// For which manifest.
    pub work: u32,
    /// This side dialled.
    pub ours: bool,
    /// How far it is.
    pub state: LinkState,
    /// Frames take this lane.
    pub lane: u8,
    /// Nothing gets through any more, though nobody noticed yet.
    pub cut: bool,
}

/// How far a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// The other side has it; the answer is on its way.
    Opening,
    /// This side knows it.
    Up,
    /// It ended.
    Closed,
}

/// Layers by number, with groups: mostly one.
pub type Ranges = SmallVec<[(u32, Range<u64>); 1]>;

/// A fetch that waits for its answer.
#[derive(Debug)]
pub struct Download {
    /// Its name in the state machine.
    pub slot: SlotId,
    /// Of whom.
    pub from: u32,
    /// When the state machine means to give it up.
    pub deadline: Time,
    /// Requests that are not answered.
    pub open: SmallVec<[u64; 2]>,
    /// What was asked for.
    pub parts: Ranges,
    /// What was stored of it.
    pub stored: Ranges,
    /// Payload bytes that came.
    pub bytes: u64,
    /// The first thing that went wrong.
    pub fault: Option<Fault>,
}

/// How far a host is with a manifest.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Which manifest.
    pub work: u32,
    /// Bytes that it lacks.
    pub lacks: u64,
    /// Bytes that it lacked at first.
    pub lacked: u64,
    /// When it lacked nothing.
    pub finished: Option<Time>,
    /// When the first 25, 50 and 75 % of the bytes were there without a hole.
    pub prefix: [Option<Time>; 3],
    /// Where the first hole is: place of the layer in the manifest, and block.
    hole: (usize, u32),
    before_hole: u64,
}

/// A host.
pub struct Host {
    /// Its key; the last four bytes are its number.
    pub key: KeyId,
    /// Its part.
    pub player: Player,
    /// False before it comes, between a crash and the restart, and after it left.
    pub online: bool,
    /// It left for good.
    pub gone: bool,
    /// Counts its lives; what was under way for an earlier one is void.
    pub life: u32,
    /// What it has. Survives a crash.
    pub disk: Disk,
    /// Its state machine, while it is online.
    pub swarm: Option<Swarm>,
    /// By `LinkId`.
    pub links: Vec<Link>,
    /// Fetches without an answer.
    pub downloads: Vec<Download>,
    /// Requests of others that it knows of and that are not over.
    pub serving: Vec<u64>,
    /// How many of those run.
    pub uploading: usize,
    /// By manifest.
    pub progress: Vec<Progress>,
    /// When its state machine wants to be woken.
    pub wake: Option<Time>,
    /// The earliest wake-up that waits in the queue.
    pub wake_queued: Option<Time>,
    /// When its disk is through with what was written so far.
    pub disk_free: Time,
    /// Its disk is full.
    pub full: bool,
    /// Its side of the partition.
    pub side: u8,
    /// When it lacked nothing of any manifest.
    pub finished: Option<Time>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("player", &self.player)
            .field("online", &self.online)
            .finish_non_exhaustive()
    }
}

impl Host {
    /// Host number `index` of a run.
    pub fn new(index: u32, player: Player, layout: &Layout) -> Self {
        let mut key = *blake3::hash(&[&b"host"[..], &index.to_le_bytes()].concat()).as_bytes();
        key[28..].copy_from_slice(&index.to_be_bytes());
        let mut disk = Disk::new(layout);
        for layer in &player.holds {
            disk.fill(layout, *layer);
        }
        let progress = player.works.iter().map(|work| {
            let layers = &layout.models[*work as usize].layers;
            let lacks = disk.lacks_bytes(layout, layers);
            Progress {
                work: *work,
                lacks,
                lacked: lacks,
                finished: None,
                prefix: [None; 3],
                hole: (0, layers.first().map_or(0, |layer| layout.blocks(*layer).start)),
                before_hole: 0,
            }
        });
        Self {
            key: KeyId(key),
            progress: progress.collect(),
            player,
            online: false,
            gone: false,
            life: 0,
            disk,
            swarm: None,
            links: Vec::new(),
            downloads: Vec::new(),
            serving: Vec::new(),
            uploading: 0,
            wake: None,
            wake_queued: None,
            disk_free: Time(0),
            full: false,
            side: 0,
            finished: None,
        }
    }

    /// Number of the host that a key names.
    pub fn index_of(key: &KeyId) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&key.0[28..]);
        u32::from_be_bytes(bytes)
    }

    /// Its rack as the state machine names it.
    pub fn rack(&self) -> Option<RackId> {
        self.player.rack.map(|rack| RackId(u64::from(rack) + 1))
    }

    /// Begins a life. `cuts` says how each manifest is cut.
    pub fn boot(&mut self, config: Arc<SwarmConfig>, cuts: &[Arc<Space>], seed: u64) {
        self.online = true;
        let mut swarm = Swarm::new(config, seed, self.key, self.rack());
        for work in &self.player.works {
            swarm.share_cut(cuts[*work as usize].clone());
        }
        self.swarm = Some(swarm);
    }

    /// What its clock shows.
    pub fn clock(&self, now: Time) -> Time {
        if self.player.clock_gain_ppm == 0 {
            return Time(now.0.saturating_add(self.player.clock_ahead_ns));
        }
        let gain = i128::from(now.0) * i128::from(self.player.clock_gain_ppm) / 1_000_000;
        let shown = i128::from(now.0) + i128::from(self.player.clock_ahead_ns) + gain;
        Time(u64::try_from(shown).unwrap_or(0))
    }

    /// When its clock shows at least `shown`.
    pub fn when(&self, shown: Time) -> Time {
        if self.player.clock_gain_ppm == 0 {
            return Time(shown.0.saturating_sub(self.player.clock_ahead_ns));
        }
        let since = i128::from(shown.0) - i128::from(self.player.clock_ahead_ns);
        let scale = 1_000_000 + i128::from(self.player.clock_gain_ppm);
        let at = (since * 1_000_000).div_euclid(scale) + 1;
        Time(u64::try_from(at).unwrap_or(0))
    }

    /// Links for a manifest that this side knows.
    pub fn link_count(&self, work: u32) -> usize {
        let counts = |link: &&Link| link.state == LinkState::Up && link.work == work;
        self.links.iter().filter(counts).count()
    }

    /// Notes what was stored or lost of a layer: `fresh_bytes` more or less. Returns true if that finished it.
    pub fn note_progress(&mut self, layout: &Layout, now: Time, layer: u32, fresh_bytes: i64) -> bool {
        for progress in &mut self.progress {
            let model = &layout.models[progress.work as usize];
            if !model.layers.contains(&layer) {
                continue;
            }
            progress.lacks = progress.lacks.saturating_add_signed(-fresh_bytes);
            progress.finished = (progress.lacks == 0).then(|| progress.finished.unwrap_or(now));
            progress.advance(layout, &self.disk, now);
        }
        let done = self.progress.iter().all(|progress| progress.lacks == 0);
        let was = self.finished;
        self.finished = done.then(|| was.unwrap_or(now));
        done && was.is_none()
    }

    /// Bytes that it lacks, over all manifests.
    pub fn lacks_bytes(&self) -> u64 {
        self.progress.iter().map(|progress| progress.lacks).sum()
    }
}

impl Progress {
    fn advance(&mut self, layout: &Layout, disk: &Disk, now: Time) {
        let model = &layout.models[self.work as usize];
        while let Some(layer) = model.layers.get(self.hole.0) {
            if self.hole.1 >= layout.blocks(*layer).end {
                self.hole.0 += 1;
                if let Some(next) = model.layers.get(self.hole.0) {
                    self.hole.1 = layout.blocks(*next).start;
                }
                continue;
            }
            if !disk.has_block(self.hole.1) {
                return;
            }
            self.before_hole += layout.span_bytes(*layer, &layout.groups_of(*layer, self.hole.1));
            self.hole.1 += 1;
            for (quarters, mark) in (1..).zip(&mut self.prefix) {
                if mark.is_none() && self.before_hole * 4 >= model.bytes * quarters {
                    *mark = Some(now);
                }
            }
        }
    }
}
