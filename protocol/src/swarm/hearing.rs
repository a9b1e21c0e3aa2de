//! Hearing and telling: frames of neighbours, what they change, and this host's own news.

use super::Swarm;
use super::io::{Action, Charge, LinkId, PieceNo, WorkId};
use crate::time::Time;
use crate::wire::bao::GroupSet;
use crate::wire::swarm::Frame;

/// Entries of a frame that count as one frame more.
const ENTRIES_A_FRAME: u64 = 64;

/// How many frames a frame counts for, in a work of `count` pieces: by what it takes to read it.
fn weight(frame: &Frame, count: usize) -> u64 {
    let entries = match frame {
        // A range may be of any number of pieces.
        Frame::Bitfield { layers } => {
            layers.iter().map(|(_, groups)| groups.boundaries().len() + 1).sum::<usize>() + count
        }
        Frame::News { held: pieces, .. } | Frame::Coming { pieces } | Frame::Lost { pieces } => pieces.len(),
        _ => 0,
    };
    1 + entries as u64 / ENTRIES_A_FRAME
}

impl Swarm {
    pub(super) fn frame(&mut self, link: LinkId, frame: &Frame) {
        let Some((id, at)) = self.locate(link) else {
            return;
        };
        let now = self.now;
        let Some(work) = self.works.get_mut(&id) else {
            return;
        };
        let count = work.pieces.count();
        let entry = work.link_mut(at);
        if !entry.frames.admits(now, &self.config, weight(frame, count)) {
            let peer = entry.peer;
            return self.punish(peer, Charge::Flood);
        }
        let known = |piece: &PieceNo| (*piece as usize) < count;
        let sane = match frame {
            Frame::Begin { piece_bytes, .. } => {
                !entry.begun && *piece_bytes == work.pieces.space.piece_bytes()
            }
            _ if !entry.begun => false,
            Frame::Bitfield { layers } => {
                layers.iter().all(|(place, _)| work.pieces.space.layer_at(*place).is_some())
            }
            Frame::News { held: pieces, .. } | Frame::Coming { pieces } | Frame::Lost { pieces } => {
                pieces.iter().all(known)
            }
            Frame::Grant { piece } | Frame::Decline { piece, .. } => piece.iter().all(known),
            Frame::Ask { piece, .. } => known(piece),
        };
        if !sane {
            let peer = work.links()[at].peer;
            return self.punish(peer, Charge::Protocol);
        }
        match frame {
            Frame::Begin { rack, releasing, .. } => {
                let near = self.rack.is_none() || rack.is_none() || *rack == self.rack;
                let entry = work.link_mut(at);
                entry.begun = true;
                entry.releasing = *releasing;
                if rack.is_some() {
                    entry.near = near;
                }
                self.uploads_dirty = true;
            }
            Frame::Bitfield { layers } => self.bitfield(id, at, layers),
            Frame::News { held, load } => self.news(id, at, held, *load),
            Frame::Coming { pieces } => pieces.iter().for_each(|piece| work.coming(at, *piece)),
            Frame::Lost { pieces } => {
                for piece in pieces {
                    work.not_coming(at, *piece);
                    work.forget(at, *piece);
                }
            }
            Frame::Grant { piece } => self.granted(id, at, *piece),
            Frame::Decline { piece, load } => {
                work.link_mut(at).told_load(now, *load);
                self.declined(link, *piece);
            }
            Frame::Ask { piece, urgent } => self.wanted(id, at, *piece, *urgent),
        }
    }

    /// Which manifest a link is for, and its place there. Frames are by far the most inputs, and mostly there is one
    /// manifest.
    fn locate(&self, link: LinkId) -> Option<(WorkId, usize)> {
        let (id, work) = if self.works_share {
            let id = self.link_work.get(&link)?;
            (id, self.works.get(id)?)
        } else {
            let (id, work) = self.works.first()?;
            (id, work)
        };
        work.find(link).map(|at| (*id, at))
    }

    fn bitfield(&mut self, id: WorkId, at: usize, layers: &[(u32, GroupSet)]) {
        let now = self.now;
        let Some(work) = self.works.get_mut(&id) else {
            return;
        };
        let mut turns = work.turns.take();
        for (place, groups) in layers {
            let Some(layer) = work.pieces.space.layer_at(*place) else { continue };
            // Who declares more than anybody does is not remembered in all detail.
            let link = work.link_mut(at);
            link.more.declared = link.more.declared.saturating_add(groups.boundaries().len());
            let in_detail = link.more.declared <= self.config.declared_max;
            let mut split = work.pieces.space.split(layer, groups).into_iter().peekable();
            while let Some((piece, part, range)) = split.next() {
                let parts = work.pieces.space.parts(piece);
                let whole = parts.len() == 1 && parts[0].groups == range;
                if let Some(turns) = &mut turns
                    && !work.links()[at].near
                {
                    turns.seen(now, piece);
                }
                if whole {
                    work.learn(at, piece);
                    continue;
                }
                let mut boundaries = vec![range.start, range.end];
                while let Some((.., range)) = split.next_if(|(p, q, _)| (*p, *q) == (piece, part)) {
                    boundaries.extend([range.start, range.end]);
                }
                let all: Vec<GroupSet> =
                    parts.iter().map(|part| GroupSet::from(part.groups.clone())).collect();
                let link = work.link_mut(at);
                if link.have().contains(piece) || !in_detail {
                    continue;
                }
                let have =
                    link.partial_mut().entry(piece).or_insert_with(|| vec![GroupSet::empty(); all.len()]);
                have[part] |= GroupSet::new(boundaries.into()).unwrap_or_else(GroupSet::empty);
                if *have == all {
                    work.learn(at, piece);
                }
            }
        }
        work.turns = turns;
        self.after_news(id, at);
    }

    fn news(&mut self, id: WorkId, at: usize, held: &[PieceNo], load: u8) {
        let Some(work) = self.works.get_mut(&id) else {
            return;
        };
        let link = work.link_mut(at);
        link.told_load(self.now, load);
        let was_quiet = link.declined_until > self.now;
        (link.declined_until, link.declines) = (Time(0), 0);
        let outside = !link.near;
        for piece in held {
            work.learn(at, *piece);
            if outside && let Some(turns) = &mut work.turns {
                turns.seen(self.now, *piece);
            }
        }
        if was_quiet || self.uploads.running() + self.uploads.promised() < self.config.uploads_max {
            self.uploads_dirty = true;
        }
        self.after_news(id, at);
    }

    fn after_news(&mut self, id: WorkId, at: usize) {
        let Some(work) = self.works.get(&id) else {
            return;
        };
        let complete = work.pieces.is_complete();
        let link = &work.links()[at];
        let (link_id, near, useless) = (
            link.id,
            link.near,
            complete && link.have().len() == work.pieces.count() && link.jobs == 0 && link.in_flight == 0,
        );
        if useless {
            self.drop_link(link_id, true);
            return;
        }
        if complete {
            return;
        }
        if !near {
            self.import(id);
        }
        let Some(work) = self.works.get(&id) else {
            return;
        };
        if !work.urgent.is_empty() {
            self.ask_urgent(id);
        } else if work.in_flight == 0 {
            self.starve_soon(id);
        }
    }

    pub(super) fn tell_news(&mut self, id: WorkId) {
        let load = self.load();
        let Some(work) = self.works.get_mut(&id) else {
            return;
        };
        if work.fresh.is_empty() {
            return;
        }
        let (held, links) = work.tell_all();
        if !links.is_empty() {
            self.act(Action::Broadcast { links, frame: Frame::News { held, load } });
        }
        self.drop_needless(id);
    }

    /// Sends a frame, and before it what the neighbour does not know yet of what is here: with a promise it has the
    /// choice among all of it, and the promises that this host gets in return are of use.
    pub(super) fn send_with_news(&mut self, id: WorkId, at: usize, frame: Frame) {
        let load = self.load();
        let Some(work) = self.works.get_mut(&id) else {
            return;
        };
        let Some(link) = work.links().get(at).map(|link| link.id) else {
            return;
        };
        let held = work.tell_one(at);
        if !held.is_empty() {
            self.act(Action::Send { link, frame: Frame::News { held, load } });
        }
        self.act(Action::Send { link, frame });
    }
}
