//! The loop around each host's scheduler: what it wants done is done, what happened is told, news goes to neighbours.

use std::ops::Range;
use std::time::Duration;

use rand::RngExt;
use weighlock_protocol::LayerId;
use weighlock_protocol::swarm::{Action, Event as FetchEvent, Fault, Input, Poll, SlotId};
use weighlock_protocol::wire::bao::GroupSet;

use super::{Event, Message, World};
use crate::check::Seen;
use crate::host::{Asked, Host, Payload, Request, Role, whole_groups};

impl World {
    /// Gives a host's scheduler an input and does what it says, as the daemon's driver does.
    pub(super) fn tell(&mut self, index: usize, input: Input) {
        if let Some(fetch) = &mut self.hosts[index].fetch {
            fetch.handle(self.now, input);
            self.drive(index);
        }
    }

    pub(super) fn drive(&mut self, index: usize) {
        loop {
            let Some(fetch) = &mut self.hosts[index].fetch else {
                return;
            };
            match fetch.poll() {
                Poll::Action(Action::Fetch { slot, from, layer, range, .. }) => {
                    self.ask(index, slot, Host::index_of(&from), &layer, range);
                }
                Poll::Action(Action::Cancel { slot }) => self.cancel(index, slot),
                Poll::Action(Action::Ban { peer, until, .. }) => {
                    self.counts.bans += 1;
                    let peer = Host::index_of(&peer);
                    self.note(b'b', &[index as u64, peer as u64]);
                    self.see(&Seen::Banned { by: index, peer, until });
                }
                Poll::Event(FetchEvent::Done) => {
                    self.hosts[index].finished = Some(self.now);
                    self.note(b'f', &[index as u64]);
                }
                Poll::Event(FetchEvent::Stalled { .. }) => self.counts.stalls += 1,
                Poll::Event(FetchEvent::LayerComplete(_) | FetchEvent::Stopped { .. }) => {}
                Poll::Idle { wake } => {
                    let host = &mut self.hosts[index];
                    if host.wake != wake {
                        host.wake = wake;
                        if let Some(at) = wake {
                            self.queue.push(at, Event::Wake { host: index, epoch: host.epoch, at });
                        }
                    }
                    return;
                }
            }
        }
    }

    pub(super) fn ask(&mut self, by: usize, slot: SlotId, from: usize, layer: &LayerId, range: Range<u64>) {
        let Some(layer) = self.layers.iter().position(|(id, _)| id == layer) else {
            return;
        };
        self.counts.asked += 1;
        self.note(b'a', &[by as u64, from as u64, slot.0, layer as u64, range.start, range.end]);
        let stored = self.hosts[by].have[layer].clone();
        self.see(&Seen::Asked { by, from, layer, range: &range, stored: &stored });
        let host = &mut self.hosts[by];
        host.asked.insert(slot, Asked { from, layer, range: range.clone(), flow: None });
        let request = Request { by, epoch: host.epoch, slot, layer, range };
        self.send(from, Message::Request(request));
    }

    pub(super) fn receive(&mut self, by: usize, from: usize, slot: SlotId, payload: &Payload) {
        let Some(asked) = self.hosts[by].asked.remove(&slot) else {
            return;
        };
        let layer = asked.layer;
        let (stored, fault) = self.hosts[by].receive(layer, payload);
        self.note(b'r', &[by as u64, from as u64, slot.0, stored.start, stored.end]);
        self.see(&Seen::Received { by, from, layer, stored: &stored, bad: payload.bad });
        match fault {
            Some(Fault::Verify) => self.counts.refuted += 1,
            Some(Fault::Lost) => self.counts.lost += 1,
            _ => {}
        }
        self.announce_soon(by);
        let input = match fault {
            None => Input::Stored { slot, bytes: payload.bytes },
            Some(fault) => Input::Failed { slot, fault, stored: GroupSet::from(stored) },
        };
        self.tell(by, input);
    }

    pub(super) fn cancel(&mut self, by: usize, slot: SlotId) {
        let Some(asked) = self.hosts[by].asked.remove(&slot) else {
            return;
        };
        self.counts.cancelled += 1;
        let mut stored = asked.range.start..asked.range.start;
        let transfer = asked.flow.and_then(|flow| Some((flow, self.transfers.remove(&flow)?)));
        if let Some((flow, transfer)) = transfer {
            let moved = self.network.stop(self.now, flow).unwrap_or(transfer.bytes);
            self.counts.wire_bytes += moved;
            if self.hosts[transfer.server].role == Role::Seed {
                self.counts.seed_bytes += moved;
            }
            let range = whole_groups(&asked.range, transfer.range_bytes, moved);
            let bad = transfer.bad.filter(|bad| range.contains(bad));
            let payload = Payload { range, bad, bytes: moved, fault: Some(Fault::Cancelled) };
            (stored, _) = self.hosts[by].receive(asked.layer, &payload);
            // A spoiled group that came at the last moment is dropped with the stream, unseen.
            self.see(&Seen::Received {
                by,
                from: asked.from,
                layer: asked.layer,
                stored: &stored,
                bad: None,
            });
            self.release(transfer.server);
            self.announce_soon(by);
        }
        let stored = GroupSet::from(stored);
        if let Some(fetch) = &mut self.hosts[by].fetch {
            fetch.handle(self.now, Input::Failed { slot, fault: Fault::Cancelled, stored });
        }
    }

    pub(super) fn announce_soon(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        if !host.announce_due && host.fresh.iter().any(|groups| !groups.is_empty()) {
            host.announce_due = true;
            let at = self.now + Duration::from_micros(self.options.announce_us);
            self.queue.push(at, Event::Announce { host: index, epoch: host.epoch });
        }
    }

    pub(super) fn announce(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        host.announce_due = false;
        let fresh: Vec<_> = host.fresh.iter_mut().map(std::mem::take).enumerate().collect();
        for to in host.neighbours.clone() {
            for (layer, have) in fresh.iter().filter(|(_, have)| !have.is_empty()) {
                self.declare(index, to, *layer, have.clone());
            }
        }
    }

    pub(super) fn declare(&mut self, from: usize, to: usize, layer: usize, have: GroupSet) {
        // Who has everything does not listen.
        if self.hosts[to].online && self.hosts[to].fetch.is_some() && self.hosts[to].finished.is_none() {
            self.counts.announcements += 1;
            let epoch = self.hosts[from].epoch;
            self.send(to, Message::Declared { from, epoch, layer, have });
        }
    }

    /// Tells the neighbours everything it has, and hears the same from them if it just came back.
    pub(super) fn greet(&mut self, index: usize, both_ways: bool) {
        for to in self.hosts[index].neighbours.clone() {
            for layer in 0..self.layers.len() {
                self.declare(index, to, layer, self.hosts[index].have[layer].clone());
                if both_ways && self.hosts[to].online {
                    self.declare(to, index, layer, self.hosts[to].have[layer].clone());
                }
            }
        }
    }

    pub(super) fn begin(&mut self, index: usize) {
        let seed = self.rng.random_range(0..u64::MAX);
        let config = self.options.fetch_config();
        self.hosts[index].begin(config, seed, &self.layers);
        self.drive(index);
    }
}
