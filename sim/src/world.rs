//! The world of one run: hosts, the network between them, and the loop that lets one thing happen after another.

mod driver;
mod topology;
mod transfers;

use std::collections::BTreeMap;
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use weighlock_protocol::swarm::{Fault, Input, SlotId};
use weighlock_protocol::wire::bao::GroupSet;
use weighlock_protocol::{LayerId, Time};

use crate::check::{self, Check, Seen, Violation};
use crate::faults;
use crate::host::{Host, Payload, Request, Role};
use crate::network::{FlowId, Network};
use crate::options::Options;
use crate::queue::Queue;
use crate::report::{Counts, Report};

/// A run ends when it was at work for so many times the bound after the faults healed.
const PATIENCE_BOUNDS: u32 = 40;
/// And for this long, so that pauses after failures end.
const PATIENCE_MIN: Duration = Duration::from_secs(120);
/// Violations that are kept of one run.
const VIOLATIONS_MAX: usize = 20;

/// A run in progress.
#[derive(Debug)]
pub struct World {
    options: Options,
    layers: Vec<(LayerId, u64)>,
    rng: ChaCha8Rng,
    now: Time,
    queue: Queue<Event>,
    hosts: Vec<Host>,
    network: Network,
    transfers: BTreeMap<FlowId, Transfer>,
    share_due: bool,
    checks: Vec<Box<dyn Check>>,
    violations: Vec<Violation>,
    counts: Counts,
    trace: blake3::Hasher,
}

#[derive(Debug)]
enum Event {
    Deliver { to: usize, epoch: u32, message: Message },
    Wake { host: usize, epoch: u32, at: Time },
    Announce { host: usize, epoch: u32 },
    Crash { host: usize },
    Restart { host: usize },
    Share,
}

#[derive(Debug)]
enum Message {
    Declared { from: usize, epoch: u32, layer: usize, have: GroupSet },
    Gone { from: usize },
    Request(Request),
    Answer { from: usize, slot: SlotId, payload: Payload },
}

/// A payload on its way.
#[derive(Debug)]
struct Transfer {
    server: usize,
    request: Request,
    /// Bytes of the whole range.
    range_bytes: u64,
    /// Bytes that the flow moves before it ends.
    bytes: u64,
    bad: Option<u64>,
}

impl World {
    /// A world as the options say, at time zero.
    pub fn new(options: Options) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let layers = options.layers();
        let roles = options.scenario.cast(&options);
        let mut hosts: Vec<Host> =
            roles.iter().enumerate().map(|(index, role)| Host::new(index, *role, &layers)).collect();
        topology::connect(&mut hosts, options.neighbours, &mut rng);
        let links = vec![(options.up_bytes_per_s, options.down_bytes_per_s); hosts.len()];
        let mut checks = check::always();
        checks.extend(options.scenario.checks());
        let mut world = Self {
            network: Network::new(&links),
            layers,
            now: Time(0),
            queue: Queue::default(),
            hosts,
            transfers: BTreeMap::new(),
            share_due: false,
            checks,
            violations: Vec::new(),
            counts: Counts::default(),
            trace: blake3::Hasher::new(),
            rng,
            options,
        };
        for crash in faults::draw(&world.options, world.hosts.len(), &mut world.rng) {
            world.queue.push(crash.at, Event::Crash { host: crash.host });
            world.queue.push(crash.back, Event::Restart { host: crash.host });
        }
        world
    }

    /// Runs until everyone finished or patience ends.
    pub fn run(mut self) -> Report {
        for host in 0..self.hosts.len() {
            self.begin(host);
        }
        for host in 0..self.hosts.len() {
            self.greet(host, false);
        }
        let end = Time(0) + self.options.heal_at() + self.options.bound() * PATIENCE_BOUNDS + PATIENCE_MIN;
        while self.unfinished().next().is_some() && self.violations.len() < VIOLATIONS_MAX {
            let flow_ends = self.network.next_end();
            let event_at = self.queue.next_at();
            let Some(next) = flow_ends.into_iter().chain(event_at).min().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            self.counts.events += 1;
            if flow_ends == Some(next) {
                if let Some(flow) = self.network.pop_ended(next) {
                    self.flow_ended(flow);
                }
            } else if let Some((_, event)) = self.queue.pop() {
                self.happen(event);
            }
        }
        self.conclude()
    }

    /// Now.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Fetching hosts that lack something.
    pub fn unfinished(&self) -> impl Iterator<Item = usize> + '_ {
        let late = |host: &Host| host.role == Role::Fetcher && host.finished.is_none();
        (0..).zip(&self.hosts).filter(move |(_, host)| late(host)).map(|(index, _)| index)
    }

    /// Bytes that a host lacks.
    pub fn missing_bytes(&self, host: usize) -> u64 {
        self.hosts[host].missing_bytes(&self.layers)
    }

    fn conclude(mut self) -> Report {
        let mut checks = std::mem::take(&mut self.checks);
        for check in &mut checks {
            if let Err(what) = check.end(&self) {
                self.violations.push(Violation { check: check.name(), at_ns: self.now.0, what });
            }
        }
        let mut finished_ns: Vec<u64> =
            self.hosts.iter().filter_map(|host| host.finished).map(|at| at.0).collect();
        finished_ns.sort_unstable();
        Report {
            options: self.options,
            finished_ns,
            counts: self.counts,
            trace: self.trace.finalize().to_hex()[..16].to_string(),
            violations: self.violations,
        }
    }

    fn see(&mut self, seen: &Seen<'_>) {
        for check in &mut self.checks {
            if let Err(what) = check.see(self.now, seen) {
                self.violations.push(Violation { check: check.name(), at_ns: self.now.0, what });
            }
        }
    }

    /// Adds to the hash of the run.
    fn note(&mut self, what: u8, numbers: &[u64]) {
        self.trace.update(&[what]);
        self.trace.update(&self.now.0.to_le_bytes());
        for number in numbers {
            self.trace.update(&number.to_le_bytes());
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver { to, epoch, message } => self.deliver(to, epoch, message),
            Event::Wake { host, epoch, at } => {
                if self.hosts[host].epoch == epoch && self.hosts[host].wake == Some(at) {
                    self.hosts[host].wake = None;
                    self.note(b'w', &[host as u64]);
                    self.tell(host, Input::Tick);
                }
            }
            Event::Announce { host, epoch } => {
                if self.hosts[host].epoch == epoch {
                    self.announce(host);
                }
            }
            Event::Crash { host } => self.crash(host),
            Event::Restart { host } => self.restart(host),
            Event::Share => {
                self.share_due = false;
                self.network.share(self.now);
            }
        }
    }

    fn send(&mut self, to: usize, message: Message) {
        let at = self.now + Duration::from_micros(self.options.latency_us);
        let epoch = self.hosts[to].epoch;
        self.queue.push(at, Event::Deliver { to, epoch, message });
    }

    fn deliver(&mut self, to: usize, epoch: u32, message: Message) {
        let alive = self.hosts[to].online && self.hosts[to].epoch == epoch;
        match message {
            Message::Request(request) if alive => self.serve(to, request),
            Message::Request(request) => self.refuse(to, &request, Fault::Lost),
            Message::Declared { from, epoch, layer, have } => {
                let sender = &self.hosts[from];
                if alive && sender.online && sender.epoch == epoch {
                    self.note(b'd', &[to as u64, from as u64, layer as u64]);
                    self.see(&Seen::Declared { to, from, layer, have: &have });
                    let (peer, layer) = (self.hosts[from].key, self.layers[layer].0);
                    self.tell(to, Input::Declared { peer, layer, have, connections: 1 });
                }
            }
            Message::Gone { from } if alive => {
                self.note(b'g', &[to as u64, from as u64]);
                self.see(&Seen::Gone { by: to, peer: from });
                self.tell(to, Input::PeerGone { peer: self.hosts[from].key });
            }
            Message::Answer { from, slot, payload } if alive => self.receive(to, from, slot, &payload),
            Message::Gone { .. } | Message::Answer { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests;
