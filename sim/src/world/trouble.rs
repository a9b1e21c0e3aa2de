//! What goes wrong happens here: crashes, partitions, full disks, rot, broken links.

use std::ops::Range;
use std::time::Duration;

use weighlock_protocol::swarm::{Fault, Input, LinkId, WorkId};
use weighlock_protocol::wire::bao::{GroupSet, bounded};

use super::{Event, World};
use crate::check::Seen;
use crate::faults::Trouble;
use crate::transfer::Stage;

impl World {
    pub(super) fn befall(&mut self, trouble: Trouble) {
        self.trace.note(b't', &[self.now.0]);
        match trouble {
            Trouble::Crash(host) => self.crash(host),
            Trouble::Restart(host) => self.begin(host),
            Trouble::Leave(host) => {
                self.crash(host);
                self.hosts[host as usize].gone = true;
                self.counts.left += 1;
            }
            Trouble::Cut(away) => self.cut(&away),
            Trouble::Mend => self.hosts.iter_mut().for_each(|host| host.side = 0),
            Trouble::Full(host) => self.hosts[host as usize].full = true,
            Trouble::Room(host) => {
                self.hosts[host as usize].full = false;
                self.tell(host, Input::Room);
            }
            Trouble::Rot(host, layer, groups) => self.rot(host, layer, &groups),
            Trouble::Urgent(host, work, layer, groups) => {
                let groups = vec![(self.layout.layers[layer as usize].id, GroupSet::from(groups))];
                self.tell(host, Input::Urgent { work: WorkId(work), groups });
            }
            Trouble::LinkBreaks(host, number) => self.break_link(host, number),
        }
    }

    /// Everything in memory is lost; neighbours hear it from the kernel, or from the silence of a partition.
    pub(super) fn crash(&mut self, index: u32) {
        if !self.hosts[index as usize].online {
            return;
        }
        self.counts.crashes += 1;
        for number in self.open_links(index) {
            self.disconnect(index, LinkId(number));
        }
        self.drop_uploads(index);
        let host = &mut self.hosts[index as usize];
        host.online = false;
        host.life += 1;
        host.swarm = None;
        (host.wake, host.wake_queued) = (None, None);
        self.drop_downloads(index);
        self.see(&Seen::Crashed { host: index });
        for work in self.hosts[index as usize].player.works.clone() {
            self.members[work as usize].retain(|member| *member != index);
        }
    }

    fn cut(&mut self, away: &[u32]) {
        self.counts.partitions += 1;
        for host in away {
            self.hosts[*host as usize].side = 1;
        }
        let mut links = Vec::new();
        for index in (0..self.hosts.len()).map(|index| u32::try_from(index).unwrap_or(u32::MAX)) {
            for number in self.open_links(index) {
                let peer = self.hosts[index as usize].links[number as usize].peer;
                if self.is_cut(index, peer) {
                    self.hosts[index as usize].links[number as usize].cut = true;
                    links.push((index, number));
                }
            }
        }
        let under_way = self.transfers.iter().filter(|(_, transfer)| {
            let crossing = self.is_cut(transfer.by, transfer.server);
            crossing && matches!(transfer.stage, Stage::Waiting | Stage::Withheld | Stage::Flowing(_))
        });
        let transfers: Vec<u64> = under_way.map(|(id, _)| id).collect();
        for id in &transfers {
            self.freeze(*id);
        }
        let at = self.now + Duration::from_micros(self.options.faults.notice_us);
        self.queue.push(at, Event::Noticed { links, transfers });
    }

    /// A flow across a cut moves no more. What came of it counts once the cut is noticed.
    fn freeze(&mut self, id: u64) {
        let Some(Stage::Flowing(flow)) = self.transfers.get(id).map(|transfer| transfer.stage) else {
            return;
        };
        let moved = self.network.stop(self.now, flow).bytes;
        self.share_soon();
        if let Some(transfer) = self.transfers.get_mut(id) {
            transfer.moved = moved;
            transfer.stage = Stage::Withheld;
            let transfer = transfer.clone();
            self.count_wire(&transfer);
        }
    }

    pub(super) fn noticed(&mut self, links: &[(u32, u32)], transfers: &[u64]) {
        for id in transfers {
            let Some(transfer) = self.transfers.get(*id).cloned() else {
                continue;
            };
            self.land(*id, transfer.moved, Some(Fault::Lost));
            let life = self.hosts[transfer.server as usize].life;
            self.released(transfer.server, life, *id, transfer.moved);
        }
        for (host, number) in links {
            self.link_down(*host, *number);
        }
    }

    fn rot(&mut self, index: u32, layer: u32, groups: &Range<u64>) {
        let host = &mut self.hosts[index as usize];
        // A scrub looks at what is there for good, not at a fetch that is not through.
        if host.downloads.iter().any(|download| download.stored.iter().any(|(of, _)| *of == layer)) {
            return;
        }
        let gone = host.disk.spoil(&self.layout, layer, groups);
        if gone.is_empty() {
            return;
        }
        self.counts.rots += 1;
        let size = self.layout.layers[layer as usize].size;
        let bytes: u64 = bounded(&gone, size).map(|range| self.layout.span_bytes(layer, &range)).sum();
        let was = host.finished.is_some();
        host.note_progress(&self.layout, self.now, layer, -i64::try_from(bytes).unwrap_or(0));
        if host.player.counts() && !host.player.holds.contains(&layer) {
            self.counts.stored_bytes -= bytes;
        }
        if host.player.counts() && was {
            self.open_count += 1;
        }
        let id = self.layout.layers[layer as usize].id;
        self.see(&Seen::Rotten { host: index });
        self.tell(index, Input::Shrunk { layer: id, groups: gone });
    }

    fn break_link(&mut self, index: u32, number: u64) {
        let links = self.open_links(index);
        if links.is_empty() {
            return;
        }
        self.counts.links_broken += 1;
        let number = links[(number % links.len() as u64) as usize];
        let link = self.hosts[index as usize].links[number as usize];
        if !link.cut {
            self.link_down(index, number);
            self.send(index, link.peer, Event::LinkDown { host: link.peer, link: link.peer_link });
        }
    }
}
