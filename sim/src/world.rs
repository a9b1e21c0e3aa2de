//! The world of one run: hosts, the network between them, and the loop that lets one thing happen after another.

mod drive;
mod fetch;
mod harm;
mod links;
mod serve;
#[cfg(test)]
mod tests;
mod trouble;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use weighlock_protocol::Time;
use weighlock_protocol::swarm::{Poll, Space, SwarmConfig};
use weighlock_protocol::wire::swarm::Frame;

use crate::cast;
use crate::check::{self, Check, Seen, Violation};
use crate::curve::Curve;
use crate::faults::{self, Trouble};
use crate::host::Host;
use crate::layout::Layout;
use crate::network::Network;
use crate::options::Options;
use crate::queue::Queue;
use crate::report::{Counts, Report, Times};
use crate::trace::Trace;
use crate::transfer::{Transfer, Transfers};

/// A run ends when it was at work for so many times the bound after the faults healed.
const PATIENCE_BOUNDS: u32 = 40;
/// And for so many times what the slowest host needs for its own download.
const PATIENCE_OWN: u32 = 10;
/// And for this long, so that pauses after failures and bans end.
const PATIENCE_MIN: Duration = Duration::from_secs(300);
/// Violations that are kept of one run.
const VIOLATIONS_MAX: usize = 20;
/// And of one invariant.
const VIOLATIONS_ALIKE_MAX: usize = 3;
/// Points of the completion curve within one bound.
const CURVE_POINTS: u64 = 200;

/// A run in progress.
#[derive(Debug)]
pub struct World {
    options: Options,
    config: Arc<SwarmConfig>,
    layout: Layout,
    /// How each manifest is cut.
    spaces: Vec<Arc<Space>>,
    bound_ns: u64,
    longest_ns: u64,
    heal: Time,
    rng: ChaCha8Rng,
    now: Time,
    queue: Queue<Event>,
    hosts: Vec<Host>,
    /// What the host that is driven wants; one list for all, since one of each would be one more wait for memory.
    wants: VecDeque<Poll>,
    network: Network,
    transfers: Transfers,
    share_due: bool,
    /// Hosts that are online, by manifest.
    members: Vec<Vec<u32>>,
    /// Hosts that the run is for and that are not through.
    open_count: usize,
    death: Option<harm::Death>,
    checks: Vec<Box<dyn Check>>,
    /// Some check wants to see every frame.
    shows_frames: bool,
    violations: Vec<Violation>,
    counts: Counts,
    curve: Curve,
    trace: Trace,
}

#[derive(Debug)]
enum Event {
    /// A frame reaches several hosts, each by its own number of the link.
    Frames { to: Vec<(u32, u32)>, frame: Arc<Frame> },
    /// A frame reaches one host.
    Frame { to: u32, link: u32, frame: Frame },
    /// A request for a link reaches a host.
    Dialled { by: u32, life: u32, to: u32, work: u32 },
    /// The answer reaches the host that dialled, as its link number `link`.
    LinkUp { host: u32, life: u32, link: u32 },
    /// No answer does.
    NoLink { host: u32, life: u32, to: u32, work: u32 },
    /// The end of a link reaches a host.
    LinkDown { host: u32, link: u32 },
    /// A request for a range reaches the server.
    Asked { transfer: u64 },
    /// The end of a request reaches the server.
    Released { server: u32, life: u32, transfer: u64, bytes: u64 },
    /// The last byte reaches the asking host.
    Landed { transfer: u64 },
    /// It is written.
    Written { transfer: u64 },
    /// A host comes.
    Begin { host: u32 },
    /// A host wants to be woken.
    Wake { host: u32, life: u32 },
    /// Links are shared anew.
    Share,
    /// Everyone hears who takes part.
    Refresh,
    /// The curve is drawn on.
    Sample,
    /// A hostile host does harm.
    Harm { host: u32, life: u32 },
    /// Links that a partition cut are noticed to be down, by host and link.
    Noticed { links: Vec<(u32, u32)>, transfers: Vec<u64> },
    /// Something goes wrong.
    Trouble(Box<Trouble>),
}

impl World {
    /// A world as the options say, at time zero.
    pub fn new(options: Options) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let layout = options.scenario.layout(&options);
        let config = Arc::new(options.config());
        let space = |model: &crate::layout::Model| {
            let layers = model.layers.iter().map(|layer| &layout.layers[*layer as usize]);
            Arc::new(Space::new(&config, layers.map(|layer| (layer.id, layer.size))))
        };
        let spaces: Vec<Arc<Space>> = layout.models.iter().map(space).collect();
        let pieces = spaces.iter().map(|space| space.count() as u64).max().unwrap_or(1);
        let cast = options.scenario.cast(&options, &layout, &mut rng);
        let bound_ns = cast::bound_ns(&layout, &cast, pieces).max(1);
        let longest_ns = cast::longest_ns(&layout, &cast);
        let heal = Time(0) + Duration::from_nanos(bound_ns) * 3;
        let plan = faults::draw(&options, &layout, &cast, heal.since(Time(0)), &mut rng);
        let links: Vec<_> = cast.iter().map(|player| (player.up, player.down, player.rack)).collect();
        let racks = options.scenario.rack_links(&options, &cast);
        let mut checks = check::always(&options, cast.len());
        checks.extend(options.scenario.checks(&options));
        let mut queue = Queue::new(&options.latencies());
        let last = cast.iter().map(|player| player.start).max().unwrap_or_default();
        for (host, player) in (0..).zip(&cast) {
            queue.push(player.start, Event::Begin { host });
        }
        for (at, trouble) in plan {
            queue.push(at, Event::Trouble(Box::new(trouble)));
        }
        queue.push(Time(0), Event::Sample);
        queue.push(Time(bound_ns / 8), Event::Refresh);
        let hosts: Vec<Host> =
            (0..).zip(cast).map(|(index, player)| Host::new(index, player, &layout)).collect();
        let open = hosts.iter().filter(|host| host.player.counts() && host.lacks_bytes() > 0);
        let death = harm::Death::of(&options, &layout, &hosts);
        Self {
            network: Network::new(&links, &racks),
            spaces,
            bound_ns,
            longest_ns,
            heal: heal.max(last),
            now: Time(0),
            queue,
            open_count: open.count(),
            members: vec![Vec::new(); layout.models.len()],
            transfers: Transfers::default(),
            share_due: false,
            death,
            shows_frames: checks.iter().any(|check| check.wants_frames()),
            checks,
            violations: Vec::new(),
            counts: Counts::default(),
            curve: Curve::default(),
            trace: Trace::default(),
            rng,
            hosts,
            wants: VecDeque::new(),
            layout,
            config,
            options,
        }
    }

    /// Runs until everyone finished or patience ends.
    pub fn run(mut self) -> Report {
        let patience = Duration::from_nanos(self.bound_ns) * PATIENCE_BOUNDS
            + Duration::from_nanos(self.longest_ns) * PATIENCE_OWN
            + PATIENCE_MIN;
        let end = self.heal + patience;
        while self.open_count > 0 && self.violations.len() < VIOLATIONS_MAX {
            let flow_ends = self.network.next_end();
            let event_at = self.queue.next_at();
            let Some(next) = flow_ends.into_iter().chain(event_at).min().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            self.counts.events += 1;
            if flow_ends == Some(next) {
                if let Some(ended) = self.network.pop_ended(next) {
                    self.flow_ended(ended);
                }
            } else if let Some((_, event)) = self.queue.pop() {
                self.happen(event);
            }
        }
        self.conclude()
    }

    /// What is run.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The limits that the hosts run with.
    pub fn config(&self) -> &SwarmConfig {
        &self.config
    }

    /// Now.
    pub fn now(&self) -> Time {
        self.now
    }

    /// All hosts, by number.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// All layers.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How a manifest is cut.
    pub fn space(&self, work: u32) -> &Space {
        &self.spaces[work as usize]
    }

    /// A transfer that is not over.
    pub fn transfer(&self, id: u64) -> Option<&Transfer> {
        self.transfers.get(id)
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// What happened so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// True once nothing goes wrong any more.
    pub fn is_healed(&self) -> bool {
        self.now >= self.heal
    }

    fn conclude(mut self) -> Report {
        self.sample();
        let mut checks = std::mem::take(&mut self.checks);
        for check in &mut checks {
            if let Err(what) = check.end(&self) {
                self.violations.push(Violation { check: check.name(), at_ns: self.now.0, what });
            }
        }
        let pieces = self.spaces.iter().map(|space| space.count() as u64).max().unwrap_or(0);
        let times = Times::of(&self.hosts, &self.layout, self.bound_ns);
        Report {
            options: self.options,
            bound_ns: self.bound_ns,
            pieces,
            times,
            counts: self.counts,
            curve: self.curve,
            trace: self.trace.hex(),
            violations: self.violations,
        }
    }

    fn see(&mut self, seen: &Seen<'_>) {
        let mut checks = std::mem::take(&mut self.checks);
        for check in &mut checks {
            if let Err(what) = check.see(self, seen)
                && self.violations.iter().filter(|old| old.check == check.name()).count()
                    < VIOLATIONS_ALIKE_MAX
            {
                self.violations.push(Violation { check: check.name(), at_ns: self.now.0, what });
            }
        }
        self.checks = checks;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Frames { to, frame } => self.frames_arrive(&to, &frame),
            Event::Frame { to, link, frame } => self.frame_arrives(to, link, &frame),
            Event::Dialled { by, life, to, work } => self.dialled(by, life, to, work),
            Event::LinkUp { host, life, link } => self.link_up(host, life, link),
            Event::NoLink { host, life, to, work } => self.no_link(host, life, to, work),
            Event::LinkDown { host, link } => self.link_down(host, link),
            Event::Asked { transfer } => self.asked(transfer),
            Event::Released { server, life, transfer, bytes } => self.released(server, life, transfer, bytes),
            Event::Landed { transfer } => self.landed(transfer),
            Event::Written { transfer } => self.written(transfer),
            Event::Begin { host } => self.begin(host),
            Event::Wake { host, life } => self.wake(host, life),
            Event::Share => {
                self.share_due = false;
                self.network.share(self.now);
                if self.network.is_stirred() {
                    self.share_soon();
                }
            }
            Event::Refresh => self.refresh(),
            Event::Sample => {
                self.sample();
                let step = (self.bound_ns / CURVE_POINTS).max(1);
                self.queue.push(Time(self.now.0 + step), Event::Sample);
            }
            Event::Harm { host, life } => self.harm(host, life),
            Event::Noticed { links, transfers } => self.noticed(&links, &transfers),
            Event::Trouble(trouble) => self.befall(*trouble),
        }
    }

    fn sample(&mut self) {
        let count = |host: &&Host| host.player.counts() && host.finished.is_some();
        let complete = self.hosts.iter().filter(count).count();
        self.curve.push(self.now, complete, self.counts.stored_bytes);
    }

    fn share_soon(&mut self) {
        if !self.share_due {
            self.share_due = true;
            self.queue.push(self.now + Duration::from_micros(self.options.share_us), Event::Share);
        }
    }

    /// The lane between two hosts.
    fn lane(&self, a: u32, b: u32) -> u8 {
        let rack = |host: u32| self.hosts[host as usize].player.rack;
        let near = if self.options.racks > 0 { rack(a) == rack(b) } else { (a + b).is_multiple_of(2) };
        u8::from(!near)
    }

    fn send(&mut self, from: u32, to: u32, event: Event) {
        let lane = self.lane(from, to);
        self.queue.send(self.now, lane, event);
    }

    /// True if nothing gets from one to the other.
    fn is_cut(&self, a: u32, b: u32) -> bool {
        self.hosts[a as usize].side != self.hosts[b as usize].side
    }

    fn draw(&mut self) -> u64 {
        self.rng.random_range(0..u64::MAX)
    }
}
