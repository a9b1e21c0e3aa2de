//! One head has one successor: on each host at every moment, and among hosts unless a witness signed twice.

use std::collections::BTreeMap;

use weighlock_protocol::StatementId;
use weighlock_protocol::statement::Channel;

use super::moves::{Moves, effective, may_move, promotion};
use super::{Check, Seen};
use crate::fold::cast::Place;
use crate::fold::world::FoldWorld;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct OneHead {
    /// What was last seen on each honest host.
    hosts: BTreeMap<usize, Moves>,
    /// What was ever effective anywhere, by where witnesses have one vote.
    ever: BTreeMap<Place, StatementId>,
}

impl Check for OneHead {
    fn name(&self) -> &'static str {
        "one-head"
    }

    fn see(&mut self, world: &FoldWorld, seen: &Seen<'_>) -> Result<(), String> {
        let host = match seen {
            Seen::Ingested { host, new } if may_move(world, new) => *host,
            Seen::Restarted { host } => *host,
            _ => return Ok(()),
        };
        if world.options().witnesses == 0 {
            return Ok(());
        }
        let moves = effective(world, host)?;
        for id in moves.values() {
            self.was_alone(world, host, id)?;
        }
        for (other, theirs) in self.hosts.iter().filter(|(other, _)| **other != host) {
            for (place, id) in &moves {
                if let Some(their) = theirs.get(place).filter(|their| *their != id) {
                    may_differ(world, [host, *other], &place.0, [id, their])?;
                }
            }
        }
        self.hosts.insert(host, moves);
        Ok(())
    }
}

impl OneHead {
    /// Of two promotions that share a place under one root only one ever is a head, wherever and whenever.
    fn was_alone(&mut self, world: &FoldWorld, host: usize, id: &StatementId) -> Result<(), String> {
        let Some(p) = promotion(&world.hosts()[host].ledger, id) else { return Ok(()) };
        let place = (p.channel.clone(), p.said.parent, p.said.epoch, p.said.root);
        let first = *self.ever.entry(place).or_insert(*id);
        let truth = world.truth();
        if first == *id || truth.signed_both(id, &first) || truth.is_forked(p.said.root) {
            return Ok(());
        }
        Err(format!("{} on host {host} and {} were both a head in one place", id.short(), first.short()))
    }
}

/// Whether two hosts may have different successors of one head for now.
fn may_differ(
    world: &FoldWorld,
    hosts: [usize; 2],
    channel: &Channel,
    ids: [&StatementId; 2],
) -> Result<(), String> {
    let [one, other] = [0, 1].map(|n| promotion(&world.hosts()[hosts[n]].ledger, ids[n]));
    // A rollback needs no quorum: it takes effect where it is heard.
    let (Some(one), Some(other)) = (one, other) else { return Ok(()) };
    // Witnesses of a new root may not have heard what those of the old one signed; the new root wins.
    let other_root = one.said.root != other.said.root || world.truth().is_forked(one.said.root);
    // What rests on something that was taken back makes room for another.
    let taken_back = world.truth().taken_back.contains(&channel.artifact) || world.truth().all_taken_back;
    if other_root
        || taken_back
        || world.truth().carried_both(ids[0], ids[1], world.options().witnesses / 2 + 1)
    {
        return Ok(());
    }
    Err(format!(
        "{} on host {} and {} on host {} replace one head of {channel}",
        ids[0].short(),
        hosts[0],
        ids[1].short(),
        hosts[1]
    ))
}
