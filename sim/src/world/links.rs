//! Links between neighbours: dialled, answered, carried frame by frame in order, broken; and who knows of whom.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use weighlock_protocol::Time;
use weighlock_protocol::swarm::{Candidate, Input, LinkId, WorkId};
use weighlock_protocol::wire::swarm::Frame;

use super::{Event, World};
use crate::cast::Role;
use crate::check::Seen;
use crate::host::{Link, LinkState};

impl World {
    pub(super) fn dial(&mut self, by: u32, work: WorkId, to: u32) {
        self.counts.dials += 1;
        let life = self.hosts[by as usize].life;
        if self.is_cut(by, to) {
            let at = self.now + Duration::from_micros(self.options.faults.notice_us);
            self.queue.push(at, Event::NoLink { host: by, life, to, work: work.0 });
        } else {
            self.send(by, to, Event::Dialled { by, life, to, work: work.0 });
        }
    }

    pub(super) fn dialled(&mut self, by: u32, life: u32, to: u32, work: u32) {
        let host = &self.hosts[to as usize];
        if !host.online || !host.player.works.contains(&work) || self.is_cut(by, to) {
            self.send(to, by, Event::NoLink { host: by, life, to, work });
            return;
        }
        if self.hosts[by as usize].life != life {
            return;
        }
        let lane = self.lane(by, to);
        let (here, there) = (self.next_link(to), self.next_link(by));
        let link =
            Link { peer: by, peer_link: there, work, ours: false, state: LinkState::Up, lane, cut: false };
        self.hosts[to as usize].links.push(link);
        let link =
            Link { peer: to, peer_link: here, work, ours: true, state: LinkState::Opening, lane, cut: false };
        self.hosts[by as usize].links.push(link);
        self.send(to, by, Event::LinkUp { host: by, life, link: there });
        self.tell_link_up(to, here);
    }

    pub(super) fn link_up(&mut self, index: u32, life: u32, number: u32) {
        let host = &mut self.hosts[index as usize];
        let link = &mut host.links[number as usize];
        // The host crashed meanwhile, which closed the link.
        if host.life == life && link.state == LinkState::Opening {
            link.state = LinkState::Up;
            self.tell_link_up(index, number);
        }
    }

    pub(super) fn no_link(&mut self, index: u32, life: u32, to: u32, work: u32) {
        if self.hosts[index as usize].life == life {
            let peer = self.hosts[to as usize].key;
            self.tell(index, Input::ConnectFailed { work: WorkId(work), peer });
        }
    }

    fn tell_link_up(&mut self, index: u32, number: u32) {
        let Link { peer, work, ours, .. } = self.hosts[index as usize].links[number as usize];
        self.trace.note(b'u', &[self.now.0, u64::from(index), u64::from(peer), u64::from(work)]);
        self.see(&Seen::LinkUp { by: index, link: number, peer, work });
        let (key, rack) = (self.hosts[peer as usize].key, self.hosts[peer as usize].rack());
        self.tell(index, Input::LinkUp { link: LinkId(number), work: WorkId(work), peer: key, rack, ours });
        self.see(&Seen::Linked { by: index, work });
    }

    fn next_link(&self, index: u32) -> u32 {
        u32::try_from(self.hosts[index as usize].links.len()).unwrap_or(u32::MAX)
    }

    /// A host closes its side; the other hears of it.
    pub(super) fn disconnect(&mut self, index: u32, link: LinkId) {
        if let Some(link) = self.close(index, link.0)
            && !link.cut
        {
            self.send(index, link.peer, Event::LinkDown { host: link.peer, link: link.peer_link });
        }
    }

    pub(super) fn link_down(&mut self, index: u32, number: u32) {
        let Some(link) = self.close(index, number) else {
            return;
        };
        if link.state == LinkState::Up {
            self.trace.note(b'd', &[self.now.0, u64::from(index), u64::from(link.peer)]);
            self.tell(index, Input::LinkDown { link: LinkId(number) });
        } else {
            // The end of the link overtook its beginning, which only a notice of a partition does.
            let (life, to, work) = (self.hosts[index as usize].life, link.peer, link.work);
            self.no_link(index, life, to, work);
        }
    }

    /// Closes one side. Returns what it was, if it was open.
    pub(super) fn close(&mut self, index: u32, number: u32) -> Option<Link> {
        let link = self.hosts[index as usize].links.get_mut(number as usize)?;
        let was = *link;
        link.state = LinkState::Closed;
        if was.state == LinkState::Closed {
            return None;
        }
        self.see(&Seen::LinkDown { by: index, link: number });
        Some(was)
    }

    /// Numbers of a host's links that are open.
    pub(super) fn open_links(&self, index: u32) -> Vec<u32> {
        let links = (0..).zip(&self.hosts[index as usize].links);
        links.filter(|(_, link)| link.state != LinkState::Closed).map(|(number, _)| number).collect()
    }

    pub(super) fn send_frame(&mut self, index: u32, link: LinkId, frame: Frame) {
        if let Some(link) = self.carrying(index, link.0) {
            if matches!(frame, Frame::Grant { .. }) && self.is_silent(index) {
                return;
            }
            self.counts.frames_sent += 1;
            self.queue.send(self.now, link.lane, Event::Frame { to: link.peer, link: link.peer_link, frame });
        }
    }

    pub(super) fn broadcast(&mut self, index: u32, links: &[LinkId], frame: Frame) {
        let frame = Arc::new(frame);
        for lane in [0, 1] {
            let mut to = Vec::with_capacity(links.len());
            for link in links {
                if let Some(link) = self.carrying(index, link.0).filter(|link| link.lane == lane) {
                    to.push((link.peer, link.peer_link));
                }
            }
            if !to.is_empty() {
                self.counts.frames_sent += to.len() as u64;
                self.queue.send(self.now, lane, Event::Frames { to, frame: frame.clone() });
            }
        }
    }

    fn is_silent(&self, index: u32) -> bool {
        self.hosts[index as usize].player.role == Role::Silent
    }

    /// A link that takes frames. Those on a link that is cut or closed go nowhere.
    fn carrying(&self, index: u32, number: u32) -> Option<Link> {
        let link = self.hosts[index as usize].links.get(number as usize)?;
        (link.state == LinkState::Up && !link.cut).then_some(*link)
    }

    pub(super) fn frames_arrive(&mut self, to: &[(u32, u32)], frame: &Frame) {
        for (host, link) in to {
            self.frame_arrives(*host, *link, frame);
        }
    }

    pub(super) fn frame_arrives(&mut self, index: u32, number: u32, frame: &Frame) {
        // A host that ended the link, or began a new life since, does not know its number: no need to look.
        self.counts.frames += 1;
        match frame {
            Frame::News { .. } => self.counts.news += 1,
            Frame::Grant { .. } => self.counts.grants += 1,
            Frame::Decline { .. } => self.counts.declines += 1,
            Frame::Ask { .. } => self.counts.asks += 1,
            _ => {}
        }
        self.trace.note(b'm', &[self.now.0, u64::from(index), u64::from(number)]);
        if self.shows_frames {
            self.see(&Seen::Frame { to: index, link: number, frame });
        }
        self.tell_frame(index, LinkId(number), frame);
    }

    /// Everyone hears who takes part, as host records tell the daemon.
    pub(super) fn refresh(&mut self) {
        let wide = self.hosts.len() > 1_000;
        for index in 0..u32::try_from(self.hosts.len()).unwrap_or(u32::MAX) {
            let host = &self.hosts[index as usize];
            if !host.online {
                continue;
            }
            for work in host.player.works.clone() {
                let host = &self.hosts[index as usize];
                let settled = || host.link_count(work) >= self.config.neighbours_target;
                if wide && (host.finished.is_some() || settled()) {
                    continue;
                }
                self.name_candidates(index, work);
            }
        }
        let step = (self.bound_ns / 8).max(1_000_000);
        self.queue.push(Time(self.now.0 + step), Event::Refresh);
    }

    /// Tells a host who takes part: all, or all seeds, its rack, and others at random where there are too many.
    pub(super) fn name_candidates(&mut self, index: u32, work: u32) {
        let max = self.options.candidates;
        let members = &self.members[work as usize];
        let mut named: Vec<u32> = Vec::with_capacity(max.min(members.len()));
        if members.len() <= max + 1 {
            named.extend(members);
        } else {
            let rack = self.hosts[index as usize].player.rack;
            let is_seed = |host: &u32| self.hosts[*host as usize].player.role == Role::Seed;
            named.extend(members.iter().filter(|host| is_seed(host)));
            if rack.is_some() {
                let near = members.iter().filter(|host| self.hosts[**host as usize].player.rack == rack);
                named.extend(near.take(max / 2));
            }
            for _ in 0..max.saturating_sub(named.len()) {
                named.push(members[self.rng.random_range(0..members.len() as u64) as usize]);
            }
            named.sort_unstable();
            named.dedup();
        }
        let hosts = named.into_iter().filter(|host| *host != index).map(|host| {
            let host = &self.hosts[host as usize];
            let lacks = host.progress.iter().find(|progress| progress.work == work);
            let pretends = host.player.role == Role::FalseAnnouncer;
            Candidate {
                peer: host.key,
                rack: host.rack(),
                complete: pretends || lacks.is_some_and(|progress| progress.lacks == 0),
            }
        });
        let hosts = hosts.collect();
        self.tell(index, Input::Candidates { work: WorkId(work), hosts });
    }
}
