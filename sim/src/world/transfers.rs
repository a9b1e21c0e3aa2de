//! The serving side: requests wait for an upload, uploads run as flows, crashes cut them.

use std::ops::Range;
use std::time::Duration;

use weighlock_protocol::swarm::Fault;
use weighlock_protocol::wire::bao::{GroupSet, bytes_in};

use super::{Event, Message, Transfer, World};
use crate::check::Seen;
use crate::faults;
use crate::host::{Payload, Request, Role, whole_groups};
use crate::network::FlowId;

impl World {
    pub(super) fn serve(&mut self, server: usize, request: Request) {
        if !self.hosts[server].holds(request.layer, &request.range) {
            self.counts.missed += 1;
            self.refuse(server, &request, Fault::Miss);
            return;
        }
        self.hosts[server].waiting.push_back(request);
        self.fill_uploads(server);
    }

    pub(super) fn refuse(&mut self, server: usize, request: &Request, fault: Fault) {
        let nothing = request.range.start..request.range.start;
        let payload = Payload { range: nothing, bad: None, bytes: 0, fault: Some(fault) };
        self.answer(server, request, payload);
    }

    pub(super) fn answer(&mut self, server: usize, request: &Request, payload: Payload) {
        let message = Message::Answer { from: server, slot: request.slot, payload };
        // A request of an earlier life is not answered.
        if self.hosts[request.by].epoch == request.epoch {
            self.send(request.by, message);
        }
    }

    pub(super) fn fill_uploads(&mut self, server: usize) {
        while self.hosts[server].uploads < self.options.uploads_max.max(1) {
            let Some(request) = self.hosts[server].waiting.pop_front() else {
                return;
            };
            let asker = &self.hosts[request.by];
            if asker.epoch == request.epoch && asker.asked.contains_key(&request.slot) {
                self.upload(server, request);
            }
        }
    }

    pub(super) fn upload(&mut self, server: usize, request: Request) {
        let size = self.layers[request.layer].1;
        let length = |range: &Range<u64>| bytes_in(&GroupSet::from(range.clone()), size);
        let range_bytes = length(&request.range);
        let liar = self.hosts[server].role == Role::Liar;
        let bad = if liar { faults::lie(&self.options, &request.range, &mut self.rng) } else { None };
        // The receiver resets the stream at the first group that fails.
        let sent = bad.map_or(range_bytes, |bad| length(&(request.range.start..bad + 1)));
        let bytes = faults::cut(&self.options, self.now, sent, &mut self.rng).unwrap_or(sent);
        let flow = self.network.start(self.now, server, request.by, bytes);
        self.hosts[server].uploads += 1;
        if let Some(asked) = self.hosts[request.by].asked.get_mut(&request.slot) {
            asked.flow = Some(flow);
        }
        self.transfers.insert(flow, Transfer { server, request, range_bytes, bytes, bad });
        self.share_soon();
    }

    pub(super) fn share_soon(&mut self) {
        if !self.share_due {
            self.share_due = true;
            self.queue.push(self.now + Duration::from_micros(self.options.share_us), Event::Share);
        }
    }

    pub(super) fn flow_ended(&mut self, flow: FlowId) {
        if let Some(transfer) = self.transfers.remove(&flow) {
            let moved = transfer.bytes;
            self.land(&transfer, moved);
            self.release(transfer.server);
        }
    }

    /// Sends what a transfer moved to whom it was for.
    pub(super) fn land(&mut self, transfer: &Transfer, moved: u64) {
        let Transfer { server, request, range_bytes, bad, .. } = transfer;
        let mut range = whole_groups(&request.range, *range_bytes, moved);
        let reached = bad.filter(|bad| {
            let upto = bytes_in(&GroupSet::from(request.range.start..bad + 1), self.layers[request.layer].1);
            moved >= upto
        });
        if let Some(bad) = reached {
            range.end = range.end.max(bad + 1);
        }
        let fault = (range != request.range).then_some(Fault::Lost);
        if self.hosts[*server].role == Role::Seed {
            self.counts.seed_bytes += moved;
        }
        self.counts.wire_bytes += moved;
        self.answer(*server, request, Payload { range, bad: reached, bytes: moved, fault });
    }

    pub(super) fn release(&mut self, server: usize) {
        self.hosts[server].uploads -= 1;
        self.share_soon();
        self.fill_uploads(server);
    }

    pub(super) fn crash(&mut self, index: usize) {
        if !self.hosts[index].online {
            return;
        }
        self.counts.crashes += 1;
        self.note(b'c', &[index as u64]);
        let waiting = std::mem::take(&mut self.hosts[index].waiting);
        let flows: Vec<FlowId> = self
            .transfers
            .iter()
            .filter(|(_, transfer)| transfer.server == index || transfer.request.by == index)
            .map(|(flow, _)| *flow)
            .collect();
        self.hosts[index].crash();
        for request in &waiting {
            self.refuse(index, request, Fault::Lost);
        }
        for flow in flows {
            let Some(transfer) = self.transfers.remove(&flow) else {
                continue;
            };
            let moved = self.network.stop(self.now, flow).unwrap_or(transfer.bytes);
            self.land(&transfer, moved);
            if transfer.server != index {
                self.release(transfer.server);
            }
        }
        self.share_soon();
        for to in self.hosts[index].neighbours.clone() {
            self.send(to, Message::Gone { from: index });
        }
    }

    pub(super) fn restart(&mut self, index: usize) {
        if self.hosts[index].online {
            return;
        }
        self.note(b's', &[index as u64]);
        self.hosts[index].online = true;
        self.see(&Seen::Restarted { host: index });
        self.begin(index);
        self.greet(index, true);
    }
}
