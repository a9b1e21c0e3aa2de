//! The serving side: requests wait for the state machine's word, uploads run as flows.

use weighlock_protocol::swarm::{Fault, Input};

use super::{Event, World};
use crate::cast::Role;
use crate::check::Seen;
use crate::faults;
use crate::network::Ended;
use crate::transfer::{Stage, request};

impl World {
    /// A request reaches the server.
    pub(super) fn asked(&mut self, id: u64) {
        let Some(transfer) = self.transfers.get_mut(id) else {
            return;
        };
        let (by, server, layer, groups) =
            (transfer.by, transfer.server, transfer.layer, transfer.groups.clone());
        if self.is_cut(by, server) {
            let at = self.now + std::time::Duration::from_micros(self.options.faults.notice_us);
            self.land_at(id, Fault::Lost, at);
        } else if !self.hosts[server as usize].online {
            self.land(id, 0, Some(Fault::Lost));
        } else {
            transfer_stage(self, id, Stage::Waiting);
            self.hosts[server as usize].serving.push(id);
            let (peer, layer) = (self.hosts[by as usize].key, self.layout.layers[layer as usize].id);
            self.tell(server, Input::Asked { request: request(id), peer, layer, range: groups });
            self.see(&Seen::Load { server });
        }
    }

    /// The state machine lets a request be served. Returns what to tell it if that is over at once.
    pub(super) fn serve(&mut self, server: u32, id: u64) -> Option<Input> {
        let transfer = self.transfers.get(id)?;
        if transfer.server != server || transfer.stage != Stage::Waiting {
            return None;
        }
        let (by, layer, groups, bytes) =
            (transfer.by, transfer.layer, transfer.groups.clone(), transfer.bytes);
        let host = &mut self.hosts[server as usize];
        host.uploading += 1;
        let role = host.player.role;
        if role == Role::Mute {
            transfer_stage(self, id, Stage::Withheld);
            return None;
        }
        if !host.disk.holds(&self.layout, layer, &groups) {
            self.counts.missed += 1;
            self.hosts[server as usize].uploading -= 1;
            self.land(id, 0, Some(Fault::Miss));
            return Some(Input::Served { request: request(id), bytes: 0, complete: false });
        }
        let lie_one_in = self.options.hostile.lie_one_in;
        let bad = if role == Role::Liar { faults::lie(lie_one_in, &groups, &mut self.rng) } else { None };
        // The receiver resets the stream at the first group that fails.
        let sent = bad.map_or(bytes, |bad| self.layout.span_bytes(layer, &(groups.start..bad + 1)));
        let permille = if self.is_rough() { self.options.faults.cut_permille } else { 0 };
        let flow_bytes = faults::cut(permille, sent, &mut self.rng).unwrap_or(sent);
        let flow = self.network.start(self.now, server as usize, by as usize, flow_bytes, id);
        if let Some(transfer) = self.transfers.get_mut(id) {
            transfer.stage = Stage::Flowing(flow);
            transfer.bad = bad;
            transfer.flow_bytes = flow_bytes;
        }
        self.share_soon();
        self.see(&Seen::Load { server });
        None
    }

    /// The state machine refuses a request.
    pub(super) fn refuse(&mut self, server: u32, id: u64) {
        let waits = |transfer: &&crate::transfer::Transfer| {
            transfer.server == server && transfer.stage == Stage::Waiting
        };
        if self.transfers.get(id).filter(waits).is_some() {
            self.counts.refused += 1;
            self.land(id, 0, Some(Fault::Miss));
        }
    }

    pub(super) fn flow_ended(&mut self, ended: Ended) {
        self.share_soon();
        let Some(transfer) = self.transfers.get_mut(ended.tag) else {
            return;
        };
        transfer.moved = ended.bytes;
        let (server, whole) = (transfer.server, ended.bytes >= transfer.bytes && transfer.bad.is_none());
        let transfer = transfer.clone();
        self.count_wire(&transfer);
        let cut = ended.bytes < transfer.bytes;
        self.land(ended.tag, ended.bytes, cut.then_some(Fault::Lost));
        self.tell(server, Input::Served { request: request(ended.tag), bytes: ended.bytes, complete: whole });
    }

    /// What a request came to goes back to who asked.
    pub(super) fn land(&mut self, id: u64, moved: u64, fault: Option<Fault>) {
        let Some(transfer) = self.transfers.get_mut(id) else {
            return;
        };
        let (by, server, stage) = (transfer.by, transfer.server, transfer.stage);
        transfer.moved = moved;
        transfer.fault = fault;
        transfer.stage = Stage::Landing;
        if matches!(stage, Stage::Waiting | Stage::Withheld | Stage::Flowing(_)) {
            self.unserve(server, id, stage);
        }
        self.send(server, by, Event::Landed { transfer: id });
    }

    fn land_at(&mut self, id: u64, fault: Fault, at: weighlock_protocol::Time) {
        if let Some(transfer) = self.transfers.get_mut(id) {
            transfer.fault = Some(fault);
            transfer.stage = Stage::Landing;
            self.queue.push(at, Event::Landed { transfer: id });
        }
    }

    /// Takes a request off the server's books.
    pub(super) fn unserve(&mut self, server: u32, id: u64, stage: Stage) {
        let host = &mut self.hosts[server as usize];
        if let Some(at) = host.serving.iter().position(|serving| *serving == id) {
            host.serving.swap_remove(at);
            if matches!(stage, Stage::Withheld | Stage::Flowing(_)) {
                host.uploading -= 1;
            }
        }
    }

    /// The server hears that a request was given up.
    pub(super) fn released(&mut self, server: u32, life: u32, id: u64, bytes: u64) {
        if self.hosts[server as usize].life == life {
            self.tell(server, Input::Served { request: request(id), bytes, complete: false });
        }
    }

    /// Ends what a crashed host was asked for.
    pub(super) fn drop_uploads(&mut self, index: u32) {
        for id in std::mem::take(&mut self.hosts[index as usize].serving) {
            let Some(stage) = self.transfers.get(id).map(|transfer| transfer.stage) else {
                continue;
            };
            let mut moved = 0;
            if let Stage::Flowing(flow) = stage {
                moved = self.network.stop(self.now, flow).bytes;
                self.share_soon();
            }
            self.land(id, moved, Some(Fault::Lost));
            if let Some(transfer) = self.transfers.get(id).cloned() {
                self.count_wire(&transfer);
            }
        }
        self.hosts[index as usize].uploading = 0;
    }
}

fn transfer_stage(world: &mut World, id: u64, stage: Stage) {
    if let Some(transfer) = world.transfers.get_mut(id) {
        transfer.stage = stage;
    }
}
