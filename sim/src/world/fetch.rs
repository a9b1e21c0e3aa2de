//! The fetching side: requests go out, answers are proven and written, fetches are answered once.

use std::ops::Range;
use std::time::Duration;

use weighlock_protocol::LayerId;
use weighlock_protocol::Time;
use weighlock_protocol::swarm::{Fault, Input, SlotId, WorkId};
use weighlock_protocol::wire::bao::{GROUP_BYTES, GroupSet, bounded};

use super::{Event, World};
use crate::check::Seen;
use crate::host::{Download, Ranges};
use crate::transfer::{Stage, Transfer};

impl World {
    pub(super) fn ask(
        &mut self,
        by: u32,
        (slot, deadline): (SlotId, Time),
        work: WorkId,
        from: u32,
        parts: &[(LayerId, GroupSet)],
    ) {
        let mut ranges = Ranges::new();
        for (id, groups) in parts {
            let Some(layer) = self.layout.index_of(id) else {
                continue;
            };
            let size = self.layout.layers[layer as usize].size;
            ranges.extend(bounded(groups, size).map(|range| (layer, range)));
        }
        self.counts.asked += 1;
        let first = ranges.first().map_or(0, |(layer, range)| u64::from(*layer) << 40 | range.start);
        self.trace.note(b'a', &[self.now.0, u64::from(by), u64::from(from), slot.0, first]);
        self.see(&Seen::Asked { by, from, slot, work: work.0, parts: &ranges });
        let open =
            ranges.iter().map(|(layer, groups)| self.request(by, Some(slot), from, *layer, groups.clone()));
        let open = open.collect();
        let download = Download {
            slot,
            from,
            deadline,
            open,
            parts: ranges,
            stored: Ranges::new(),
            bytes: 0,
            fault: None,
        };
        self.hosts[by as usize].downloads.push(download);
    }

    pub(super) fn request(
        &mut self,
        by: u32,
        slot: Option<SlotId>,
        server: u32,
        layer: u32,
        groups: Range<u64>,
    ) -> u64 {
        let bytes = self.layout.span_bytes(layer, &groups);
        let transfer = self.transfers.insert(Transfer {
            by,
            slot,
            server,
            layer,
            groups,
            stage: Stage::Asking,
            bytes,
            flow_bytes: bytes,
            bad: None,
            moved: 0,
            fault: None,
        });
        self.send(by, server, Event::Asked { transfer });
        transfer
    }

    /// The last byte, or a refusal, reaches the asking host.
    pub(super) fn landed(&mut self, id: u64) {
        let Some(transfer) = self.transfers.get_mut(id) else {
            return;
        };
        if transfer.slot.is_none() {
            self.transfers.remove(id);
            return;
        }
        transfer.stage = Stage::Writing;
        let (by, moved) = (transfer.by as usize, transfer.moved);
        // Proof comes before the disk: what fails it waits for nothing.
        let refuted = transfer.bad.is_some() && transfer.fault.is_none_or(|_| moved >= transfer.flow_bytes);
        let host = &mut self.hosts[by];
        match host.player.disk {
            Some(rate) if moved > 0 && !refuted => {
                let takes = Duration::from_nanos(
                    u64::try_from(u128::from(moved) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX),
                );
                host.disk_free = host.disk_free.max(self.now) + takes;
                self.queue.push(host.disk_free, Event::Written { transfer: id });
            }
            _ => self.written(id),
        }
    }

    pub(super) fn written(&mut self, id: u64) {
        let Some(transfer) = self.transfers.remove(id) else {
            return;
        };
        let (by, slot) = (transfer.by, transfer.slot);
        let (stored, fault) = self.store(&transfer);
        let host = &mut self.hosts[by as usize];
        let Some(at) = host.downloads.iter().position(|download| Some(download.slot) == slot) else {
            return;
        };
        let download = &mut host.downloads[at];
        download.open.retain(|open| *open != id);
        download.bytes += transfer.moved;
        // Proof against the sender outweighs all else.
        let refuted = fault.filter(|fault| *fault == Fault::Verify);
        download.fault = refuted.or(download.fault).or(fault);
        if !stored.is_empty() {
            download.stored.push((transfer.layer, stored));
        }
        if download.open.is_empty() {
            let download = host.downloads.swap_remove(at);
            // The daemon looks for room after each failure; here the room may have come before the news of it.
            let has_room = download.fault == Some(Fault::NoSpace) && !host.full;
            let input = self.answer(by, download);
            self.tell(by, input);
            if has_room {
                self.tell(by, Input::Room);
            }
        }
    }

    /// Proves what came, group by group, and writes it up to the first that fails.
    fn store(&mut self, transfer: &Transfer) -> (Range<u64>, Option<Fault>) {
        let Transfer { by, server, layer, groups, moved, bad, .. } = transfer;
        let mut fault = transfer.fault;
        let mut stored = fault.map_or(groups.clone(), |_| whole(groups, transfer.bytes, *moved));
        let cheated = bad.filter(|bad| {
            // The flow ends with the spoiled group: it came if all of the flow did.
            *moved >= self.layout.span_bytes(*layer, &(groups.start..bad + 1))
        });
        if let Some(bad) = cheated {
            stored.end = stored.end.min(bad);
            fault = Some(Fault::Verify);
            self.counts.refuted += 1;
        }
        if self.hosts[*by as usize].full && !stored.is_empty() {
            (stored.end, fault) = (stored.start, Some(Fault::NoSpace));
        }
        self.see(&Seen::Received {
            by: *by,
            from: *server,
            layer: *layer,
            stored: &stored,
            bad: cheated,
            fault,
        });
        if fault == Some(Fault::Lost) {
            self.counts.lost += 1;
        }
        self.keep(*by, *layer, &stored);
        (stored, fault)
    }

    fn keep(&mut self, by: u32, layer: u32, stored: &Range<u64>) {
        if stored.is_empty() {
            return;
        }
        let bytes = self.layout.span_bytes(layer, stored);
        let host = &mut self.hosts[by as usize];
        let fresh = host.disk.add(&self.layout, layer, stored);
        self.counts.wasted_bytes += bytes - fresh;
        if host.player.counts() && !host.player.holds.contains(&layer) {
            self.counts.stored_bytes += fresh;
        }
        let finished =
            host.note_progress(&self.layout, self.now, layer, i64::try_from(fresh).unwrap_or(i64::MAX));
        if finished && host.player.counts() {
            self.open_count -= 1;
            self.trace.note(b'F', &[self.now.0, u64::from(by)]);
        }
    }

    fn answer(&mut self, by: u32, download: Download) -> Input {
        let Download { slot, from, stored, bytes, fault, deadline, .. } = download;
        self.trace.note(
            b'r',
            &[self.now.0, u64::from(by), slot.0, bytes, fault.map_or(0, |fault| 1 + fault as u64)],
        );
        let Some(fault) = fault else {
            self.seed_released(from, &stored);
            return Input::Stored { slot, bytes };
        };
        self.see(&Seen::Failed { by, from, fault, late: deadline <= self.now, bytes });
        let stored = stored
            .into_iter()
            .map(|(layer, groups)| (self.layout.layers[layer as usize].id, GroupSet::from(groups)))
            .collect();
        Input::Failed { slot, fault, stored }
    }

    /// Ends a fetch and says what was stored of it.
    pub(super) fn cancel(&mut self, by: u32, slot: SlotId) -> Option<Input> {
        let host = &mut self.hosts[by as usize];
        let at = host.downloads.iter().position(|download| download.slot == slot)?;
        let mut download = host.downloads.swap_remove(at);
        self.counts.cancelled += 1;
        for id in std::mem::take(&mut download.open) {
            if let Some(transfer) = self.abandon(id) {
                let stored = whole(&transfer.groups, transfer.bytes, transfer.moved);
                // A spoiled group that came at the last moment is dropped with the stream, unseen.
                let stored = match transfer.bad {
                    Some(bad) => stored.start..stored.end.min(bad).max(stored.start),
                    None => stored,
                };
                let keeps = !self.hosts[by as usize].full;
                if keeps && !stored.is_empty() {
                    self.keep(by, transfer.layer, &stored);
                    download.stored.push((transfer.layer, stored));
                }
                download.bytes += transfer.moved;
            }
        }
        if download.fault != Some(Fault::Verify) {
            download.fault = Some(Fault::Cancelled);
        }
        Some(self.answer(by, download))
    }

    /// The asking host gives a request up: its flow stops, the server hears of it. Returns what had come.
    pub(super) fn abandon(&mut self, id: u64) -> Option<Transfer> {
        let mut transfer = self.transfers.remove(id)?;
        let server = transfer.server;
        match transfer.stage {
            Stage::Asking => {}
            Stage::Waiting | Stage::Withheld => self.tell_released(&transfer, id, 0),
            Stage::Flowing(flow) => {
                let ended = self.network.stop(self.now, flow);
                transfer.moved = ended.bytes;
                self.share_soon();
                self.count_wire(&transfer);
                self.tell_released(&transfer, id, ended.bytes);
            }
            Stage::Landing => transfer.moved = 0,
            Stage::Writing => {}
        }
        if matches!(transfer.stage, Stage::Waiting | Stage::Withheld | Stage::Flowing(_)) {
            self.unserve(server, id, transfer.stage);
        }
        Some(transfer)
    }

    fn tell_released(&mut self, transfer: &Transfer, id: u64, bytes: u64) {
        let life = self.hosts[transfer.server as usize].life;
        let event = Event::Released { server: transfer.server, life, transfer: id, bytes };
        if self.is_cut(transfer.by, transfer.server) {
            let at = self.now + Duration::from_micros(self.options.faults.notice_us);
            self.queue.push(at, event);
        } else {
            self.send(transfer.by, transfer.server, event);
        }
    }

    pub(super) fn count_wire(&mut self, transfer: &Transfer) {
        let (by, server) = (transfer.by as usize, transfer.server as usize);
        self.counts.wire_bytes += transfer.moved;
        if self.network.crosses(server, by) {
            self.counts.crossing_bytes += transfer.moved;
        }
        if self.hosts[server].player.role == crate::cast::Role::Seed {
            self.counts.seed_bytes += transfer.moved;
        }
    }

    /// Answers all fetches of a crashed host to nobody: only the servers hear of it.
    pub(super) fn drop_downloads(&mut self, index: u32) {
        for download in std::mem::take(&mut self.hosts[index as usize].downloads) {
            for id in download.open {
                self.abandon(id);
            }
        }
    }

    /// True while anything goes wrong at random.
    pub(super) fn is_rough(&self) -> bool {
        self.now < self.heal && self.now > Time(0)
    }
}

/// The groups of `groups` that are whole after `moved` of its `bytes`, where not all is known to have come.
fn whole(groups: &Range<u64>, bytes: u64, moved: u64) -> Range<u64> {
    if moved >= bytes && bytes > 0 {
        return groups.clone();
    }
    groups.start..(groups.start + moved / GROUP_BYTES).min(groups.end)
}
