//! How a run begins: a founded cluster, and everything that will happen drawn.

use std::time::Duration;

use rand::RngExt;
use weighlock_protocol::Time;
use weighlock_protocol::statement::{Chain, Envelope, Keypair, LedgerConfig};

use super::{Event, FoldWorld, pick};
use crate::fold::author::admit;
use crate::fold::cast::key;
use crate::fold::host::{EPOCH, Host};
use crate::fold::options::founders_of;

impl FoldWorld {
    /// Host 0 to the last founder hold root and admissions from the start; the liars are members, too.
    pub(super) fn found(&mut self, first: Envelope) {
        let o = self.options.clone();
        let founders = self.founders();
        let mut config = LedgerConfig::new(self.cast.cluster);
        config.idle_max = o.idle_max;
        config.idle_per_author_max = o.idle_per_author_max;
        self.truth.admitters.extend(self.cast.admins.iter().map(Keypair::key_id));
        for n in 0..o.hosts + o.liars {
            let skew =
                self.rng.random_range(0..=2 * o.skew_secs_max).cast_signed() - o.skew_secs_max.cast_signed();
            let honest = n < o.hosts;
            self.hosts.push(Host::new(key(o.seed, "host", n), config.clone(), skew, honest));
        }
        let mut all = vec![first];
        for n in (0..founders).chain(o.hosts..o.hosts + o.liars) {
            let seq = all.len() as u64;
            let chain = Some(Chain { seq, prev: all.last().map(Envelope::id) });
            let kind = admit(self.hosts[n].id(), EPOCH, None);
            all.push(self.cast.sign_together(0, EPOCH, chain, kind));
            self.hosts[n].joined = true;
        }
        let bytes: Vec<Vec<u8>> = all.iter().map(Envelope::to_json).collect();
        for n in 0..self.hosts.len() {
            if self.hosts[n].joined {
                self.hosts[n].ingest(&bytes);
            }
        }
        for envelope in all {
            self.note(&envelope);
        }
    }

    /// Hosts that are there from the start; every admin is at home on one of them.
    pub(in crate::fold) fn founders(&self) -> usize {
        founders_of(self.options.hosts, self.options.admins)
    }

    /// Draws when everything happens.
    pub(super) fn draw_faults(&mut self) {
        let o = self.options.clone();
        let all = self.hosts.len();
        self.neighbours = (0..all).map(|n| vec![(n + 1) % all, (n + all - 1) % all]).collect();
        for n in 0..all {
            for _ in 1..o.neighbours {
                let other = self.rng.random_range(0..all);
                self.neighbours[n].push(other);
                self.neighbours[other].push(n);
            }
        }
        for (n, some) in self.neighbours.iter_mut().enumerate() {
            some.sort_unstable();
            some.dedup();
            some.retain(|other| *other != n);
        }
        for _ in 0..o.acts {
            let at = self.moment();
            self.queue.push(at, Event::Act);
        }
        for _ in 0..o.attacks {
            let at = self.moment();
            self.queue.push(at, Event::Attack);
        }
        for host in self.founders()..o.hosts {
            let at = self.moment();
            self.queue.push(at, Event::Join { host });
        }
        for _ in 0..o.crashes {
            let (at, back) = (self.moment(), self.moment());
            let host = self.rng.random_range(0..all);
            self.queue.push(at, Event::Crash { host, back: at.max(back) + Duration::from_millis(1) });
        }
        for _ in 0..o.partitions {
            let (at, until) = (self.moment(), self.moment());
            let parts = self.rng.random_range(2..=3u8);
            let parts = (0..all).map(|_| self.rng.random_range(0..parts)).collect();
            self.queue.push(at.min(until), Event::Part(parts));
            self.queue.push(at.max(until), Event::Whole);
        }
        for host in 0..all {
            let at = self.within(o.reconcile_ms);
            self.queue.push(at, Event::Timer { host });
        }
        for _ in 0..o.climbs {
            let at = self.moment();
            self.queue.push(at, Event::Climb);
        }
        // Not where an admin is at home: its chain would fork, and that is another story.
        let witnesses: Vec<usize> = (o.admins.min(self.founders())..self.founders()).collect();
        for _ in 0..o.backups {
            let Some(host) = pick(&witnesses, &mut self.rng).copied() else { break };
            let (at, back) = (self.moment(), self.moment());
            self.queue.push(at.min(back), Event::Backup { host });
            self.queue.push(at.max(back), Event::Restore { host });
        }
        self.queue.push(Time(0) + Duration::from_millis(o.span_ms), Event::Heal);
    }
}
