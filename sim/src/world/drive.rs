//! The loop around each host's state machine: what it wants done is done, what happened is told.

use weighlock_protocol::Time;
use weighlock_protocol::swarm::{Action, Event as Heard, Input, LayerWant, LinkId, Poll, WorkId};
use weighlock_protocol::wire::bao::GroupSet;
use weighlock_protocol::wire::swarm::Frame;

use super::{Event, World};
use crate::cast::Role;
use crate::check::Seen;
use crate::host::Host;

impl World {
    /// Gives a host's state machine an input and does what it says, as the daemon's driver does.
    pub(super) fn tell(&mut self, index: u32, input: Input) {
        let host = &mut self.hosts[index as usize];
        let clock = host.clock(self.now);
        if let Some(swarm) = &mut host.swarm {
            swarm.swap_out(&mut self.wants);
            swarm.handle(clock, input);
            self.drive(index);
        }
    }

    /// Lets it hear a frame.
    pub(super) fn tell_frame(&mut self, index: u32, link: LinkId, frame: &Frame) {
        let host = &mut self.hosts[index as usize];
        let clock = host.clock(self.now);
        if let Some(swarm) = &mut host.swarm {
            swarm.swap_out(&mut self.wants);
            swarm.hear(clock, link, frame);
            self.drive(index);
        }
    }

    fn drive(&mut self, index: u32) {
        loop {
            let Some(swarm) = &mut self.hosts[index as usize].swarm else {
                return;
            };
            match swarm.poll() {
                Poll::Action(action) => self.act(index, action),
                Poll::Event(heard) => self.hear(index, &heard),
                Poll::Idle { wake } => {
                    swarm.swap_out(&mut self.wants);
                    let host = &mut self.hosts[index as usize];
                    host.wake = wake.map(|shown| host.when(shown));
                    self.queue_wake(index);
                    return;
                }
            }
        }
    }

    fn act(&mut self, index: u32, action: Action) {
        match action {
            Action::Broadcast { links, frame } => self.broadcast(index, &links, frame),
            Action::Send { link, frame } => self.send_frame(index, link, frame),
            Action::Fetch { slot, work, from, parts, deadline } => {
                let deadline = self.hosts[index as usize].when(deadline);
                self.ask(index, (slot, deadline), work, Host::index_of(&from), &parts);
            }
            Action::Cancel { slot } => {
                if let Some(input) = self.cancel(index, slot) {
                    self.handle(index, input);
                }
            }
            Action::Serve { request } => {
                if let Some(input) = self.serve(index, request.0) {
                    self.handle(index, input);
                }
            }
            Action::Refuse { request } => self.refuse(index, request.0),
            Action::Connect { work, peer } => self.dial(index, work, Host::index_of(&peer)),
            Action::Disconnect { link } => self.disconnect(index, link),
            Action::Ban { peer, charge, until } => {
                self.counts.bans += 1;
                let peer = Host::index_of(&peer);
                let until = self.hosts[index as usize].when(until);
                self.trace.note(b'b', &[self.now.0, u64::from(index), u64::from(peer)]);
                self.see(&Seen::Banned { by: index, peer, charge, until });
            }
        }
    }

    /// For answers to what the state machine wants while it is being driven.
    fn handle(&mut self, index: u32, input: Input) {
        let host = &mut self.hosts[index as usize];
        let clock = host.clock(self.now);
        if let Some(swarm) = &mut host.swarm {
            swarm.handle(clock, input);
        }
    }

    fn hear(&mut self, index: u32, heard: &Heard) {
        match heard {
            Heard::Complete { work } => {
                self.trace.note(b'f', &[self.now.0, u64::from(index), u64::from(work.0)]);
                self.see(&Seen::SaysComplete { by: index, work: work.0 });
            }
            Heard::Stalled { .. } => self.counts.stalls += 1,
            Heard::Paused { .. } => self.counts.pauses += 1,
            Heard::LayerComplete { layer, .. } => {
                if let Some(layer) = self.layout.index_of(layer) {
                    self.see(&Seen::SaysLayerComplete { by: index, layer });
                }
            }
            Heard::Stopped { .. } | Heard::Silent { .. } => {}
        }
    }

    fn queue_wake(&mut self, index: u32) {
        let host = &mut self.hosts[index as usize];
        let Some(at) = host.wake else {
            return;
        };
        // A state machine that wants to be woken at once is still given time to pass.
        let at = at.max(Time(self.now.0 + 1_000));
        if host.wake_queued.is_none_or(|queued| at < queued) {
            host.wake_queued = Some(at);
            let life = host.life;
            self.queue.push(at, Event::Wake { host: index, life });
        }
    }

    pub(super) fn wake(&mut self, index: u32, life: u32) {
        let host = &mut self.hosts[index as usize];
        if host.life != life || host.wake_queued != Some(self.now) {
            return;
        }
        host.wake_queued = None;
        if host.wake.is_some_and(|at| at <= self.now) {
            self.counts.wakes += 1;
            self.tell(index, Input::Tick);
        } else {
            self.queue_wake(index);
        }
    }

    /// A host comes, or comes back, with what is on its disk.
    pub(super) fn begin(&mut self, index: u32) {
        let (seed, config) = (self.draw(), self.config.clone());
        let host = &mut self.hosts[index as usize];
        if host.online || host.gone {
            return;
        }
        self.trace.note(b's', &[self.now.0, u64::from(index)]);
        host.boot(config, &self.spaces, seed);
        for work in host.player.works.clone() {
            self.members[work as usize].push(index);
            let layers = self.wants(index, work);
            self.tell(index, Input::Open { work: WorkId(work), layers });
            self.name_candidates(index, work);
        }
        self.begin_harm(index);
    }

    fn wants(&self, index: u32, work: u32) -> Vec<LayerWant> {
        let host = &self.hosts[index as usize];
        let pretends = host.player.role == Role::FalseAnnouncer;
        let want = |number: &u32| {
            let layer = &self.layout.layers[*number as usize];
            let missing = if pretends { GroupSet::empty() } else { host.disk.missing(&self.layout, *number) };
            LayerWant { layer: layer.id, size: layer.size, missing }
        };
        self.layout.models[work as usize].layers.iter().map(want).collect()
    }
}
