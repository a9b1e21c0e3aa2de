//! A rollback takes effect at once on the host where it is said, partition or not, and what it calls bad is shut there.

use weighlock_protocol::statement::{Grounds, Kind, Role, Status};

use super::{Check, Seen};
use crate::fold::host::EPOCH;
use crate::fold::world::FoldWorld;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RolledBack;

impl Check for RolledBack {
    fn name(&self) -> &'static str {
        "rolled-back"
    }

    fn see(&mut self, world: &FoldWorld, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::RolledBack { host, rollback } = seen else { return Ok(()) };
        let ledger = &world.hosts()[*host].ledger;
        let Some(s) = world.truth().signed.get(rollback) else { return Ok(()) };
        let Kind::Rollback(r) = &s.kind else { return Ok(()) };
        // Where its root is gone or its author's key revoked, it is nobody's word.
        let root = ledger.root(EPOCH).map(|root| root.root);
        let may =
            root.and_then(|root| root.roles.get(&Role::Promoter)).is_some_and(|p| p.keys.contains(&s.by));
        if !may || ledger.is_revoked(&s.by) {
            return Ok(());
        }
        let status = ledger.status(rollback);
        if status != Some(Status::Effective) {
            return Err(format!("{} is {status:?} on host {host}, where it was said", rollback.short()));
        }
        let head = ledger.heads_of(&r.channel.artifact).find(|head| head.channel == r.channel);
        if head.is_some_and(|head| head.manifest == r.manifest || head.statement != *rollback) {
            return Err(format!("host {host} has not gone back in {}", r.channel));
        }
        match ledger.may_open(&r.channel.artifact, &r.manifest, &r.channel.hardware, EPOCH) {
            Ok(Grounds::Promoted { .. }) => {
                Err(format!("host {host} opens {} after it was rolled back", r.manifest.short()))
            }
            Ok(Grounds::Ungated) | Err(_) => Ok(()),
        }
    }
}
