//! What moves heads, as several rules look at it: promotions and rollbacks by what they replace.

use std::collections::BTreeMap;

use weighlock_protocol::StatementId;
use weighlock_protocol::statement::{Channel, Kind, Ledger, OnChannel, Promotion, Status};

use crate::fold::world::FoldWorld;

/// Heads by the channel and the head before.
pub(super) type Moves = BTreeMap<(Channel, Option<StatementId>), StatementId>;

/// All that replaced a head on a host, by what it replaced.
///
/// # Errors
/// Two replaced the same.
pub(super) fn effective(world: &FoldWorld, host: usize) -> Result<Moves, String> {
    let ledger = &world.hosts()[host].ledger;
    let mut moves = Moves::new();
    for id in world.truth().moves.keys().filter(|id| ledger.status(id) == Some(Status::Effective)) {
        let (channel, parent) = match ledger.statement(id).map(|s| &s.kind) {
            Some(Kind::Promote(p)) => (&p.channel, p.said.parent),
            Some(Kind::Rollback(r)) => (&r.channel, Some(r.said.over)),
            _ => continue,
        };
        if let Some(other) = moves.insert((channel.clone(), parent), *id) {
            return Err(format!(
                "on host {host} both {} and {} replace one head of {channel}",
                id.short(),
                other.short()
            ));
        }
    }
    Ok(moves)
}

/// What a promotion says.
pub(super) fn promotion<'a>(ledger: &'a Ledger, id: &StatementId) -> Option<&'a OnChannel<Promotion>> {
    match &ledger.statement(id)?.kind {
        Kind::Promote(p) => Some(p),
        _ => None,
    }
}

/// Whether any of these can move a head or say who may.
pub(super) fn may_move(world: &FoldWorld, new: &[StatementId]) -> bool {
    new.iter().filter_map(|id| world.truth().signed.get(id)).any(|s| {
        s.kind.channel().is_some()
            || matches!(
                s.kind,
                Kind::Verdict(_) | Kind::Policy(_) | Kind::Revoke(_) | Kind::Root(_) | Kind::Admit(_)
            )
    })
}
