//! Whether a witness that has just started has heard enough of what it may have signed before.
//!
//! Its store may be an older copy. What it signed since is then with others only, and it must not sign anything else at
//! the same place. What others send goes into the same set as its own statements, so its lost cosignatures bind it as
//! soon as they are here, whether they count or not (`vote` looks at both). This says how long it waits for them.
//!
//! **Why that is safe.** It waits for more than half of the other witnesses. Those that cannot be reached do not hold it
//! up for ever: after half a minute it is enough to have heard every other witness that is connected, and one at
//! least. A witness that hears none of the others keeps silent, which costs nothing: without them its vote makes no
//! majority. And where it signs twice all the same, since nobody who knew could be asked, the two votes are proof
//! against it, and two promotions that both need it cancel each other where they meet (see `ladder`).

use std::collections::BTreeSet;

use super::super::body::Role;
use super::super::ledger::Ledger;
use crate::id::KeyId;
use crate::time::UnixTime;

/// How long after its start a witness waits for other witnesses that are not connected, in seconds; the only one waits
/// as long for any other member.
const PATIENCE_SECS: u64 = 30;

/// What a host has heard since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// Hosts with which it has compared all statements.
    pub reconciled: BTreeSet<KeyId>,
    /// Hosts that it is connected to.
    pub connected: BTreeSet<KeyId>,
    /// Seconds since it started.
    pub up_secs: u64,
}

impl Ledger {
    /// Whether `witness` may vote: it is a witness of the root in force, and has heard enough since it started.
    pub fn may_vote(&self, witness: &KeyId, heard: &Heard, now: UnixTime) -> bool {
        let root = self.root(now);
        let Some(role) = root.and_then(|status| status.root.roles.get(&Role::Witness)) else { return false };
        if !role.keys.contains(witness) {
            return false;
        }
        let is_patient = heard.up_secs >= PATIENCE_SECS;
        let others: BTreeSet<KeyId> = role.keys.iter().filter(|key| *key != witness).copied().collect();
        if others.is_empty() {
            // The only one: any member may know what it signed.
            let is_alone = !self.members(now).any(|member| member.key != *witness);
            return is_alone || !heard.reconciled.is_empty() || is_patient;
        }
        let known = others.intersection(&heard.reconciled).count();
        if known * 2 > others.len() {
            return true;
        }
        let mut present = others.intersection(&heard.connected);
        is_patient && known > 0 && present.all(|key| heard.reconciled.contains(key))
    }
}
