//! Hosts: which invites and admissions stand, and so who is a member when.

use std::collections::{BTreeMap, BTreeSet};

use super::{Authority, Held, Set, Undone};
use crate::id::{KeyId, StatementId};
use crate::statement::body::{Admit, Invite, Kind, Statement};
use crate::statement::chain::Chains;
use crate::statement::query::Member;
use crate::statement::why::{Status, Why};
use crate::time::UnixTime;

/// One revocation of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyRevoked {
    pub(super) by: KeyId,
    pub(super) seq: u64,
    pub(super) time: UnixTime,
    /// Publishes are void from here ...
    pub(super) from: UnixTime,
    /// ... until the first admission that came after.
    pub(super) until: Option<UnixTime>,
}

/// An invite that an admin made.
#[derive(Debug, Clone, Default)]
pub(super) struct InviteAt {
    revoked: bool,
    /// The winners among the hosts that it admitted.
    hosts: BTreeSet<KeyId>,
}

/// One admission of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Admission {
    id: StatementId,
    by_ticket: bool,
    time: UnixTime,
    expires: UnixTime,
    /// Undone by itself or with its invite, and since when.
    pub(super) void: Option<UnixTime>,
    /// Undone with the host's key.
    key_revoked: bool,
}

impl Authority {
    pub(super) fn fold_invites(&mut self, held: &[(StatementId, &Held)], chains: &Chains, undone: &Undone) {
        for (id, h) in held {
            if !matches!(h.statement.kind, Kind::Invite(_)) {
                continue;
            }
            let mut status = self.admin_status(id, h, chains, true);
            if status == Status::Effective {
                let revoked = undone.contains_key(id);
                self.invites.insert(*id, InviteAt { revoked, hosts: BTreeSet::new() });
                if revoked {
                    status = Status::Ignored(Why::Revoked);
                }
            }
            self.statuses.insert(*id, status);
        }
    }

    pub(super) fn fold_admissions(
        &mut self,
        held: &[(StatementId, &Held)],
        set: &Set,
        chains: &Chains,
        undone: &Undone,
    ) {
        // What each ticket signed in time, by host, earliest first.
        let mut tickets: BTreeMap<StatementId, BTreeMap<KeyId, (UnixTime, StatementId)>> = BTreeMap::new();
        let mut admissions: Vec<(StatementId, &Held, &Admit, Option<&Invite>)> = Vec::new();
        for (id, h) in held {
            let Kind::Admit(admit) = &h.statement.kind else {
                continue;
            };
            let (status, invite) = match admit.invite {
                None => (self.admin_status(id, h, chains, true), None),
                Some(by) => self.ticket_status(h, by, set),
            };
            self.statuses.insert(*id, status);
            if status != Status::Effective {
                continue;
            }
            if let Some(by) = admit.invite {
                let at = (h.statement.time, *id);
                let first = tickets.entry(by).or_default().entry(admit.host).or_insert(at);
                *first = at.min(*first);
            }
            admissions.push((*id, h, admit, invite));
        }
        for (id, hosts) in tickets {
            let uses = match set.get(&id).map(|h| &h.statement.kind) {
                Some(Kind::Invite(invite)) => usize::try_from(invite.uses).unwrap_or(usize::MAX),
                _ => 0,
            };
            let mut order: Vec<_> = hosts.into_iter().map(|(host, at)| (at, host)).collect();
            order.sort_unstable();
            if let Some(invite) = self.invites.get_mut(&id) {
                invite.hosts = order.into_iter().take(uses).map(|(_, host)| host).collect();
            }
        }
        for (id, h, admit, invite) in admissions {
            let mut void = self.void.get(&id).copied();
            if let Some(by) = admit.invite {
                if !self.invites.get(&by).is_some_and(|i| i.hosts.contains(&admit.host)) {
                    self.statuses.insert(id, Status::Ignored(Why::InviteUsed));
                    continue;
                }
                for (time, keep) in undone.get(&by).into_iter().flatten() {
                    if !keep.contains(&id) {
                        void = Some(void.map_or(*time, |v| v.min(*time)));
                    }
                }
            }
            let mut key_revoked = false;
            for revoked in self.keys.get_mut(&admit.host).into_iter().flatten() {
                if !revoked.is_before(&h.statement) {
                    key_revoked = true;
                } else if void.is_none() {
                    let until = h.statement.time;
                    revoked.until = Some(revoked.until.map_or(until, |u| u.min(until)));
                }
            }
            if void.is_some() || key_revoked {
                self.statuses.insert(id, Status::Ignored(Why::Revoked));
            }
            let cap = invite.map_or(admit.expires, |i| h.statement.time.plus(i.admit_secs_max));
            self.hosts.entry(admit.host).or_default().push(Admission {
                id,
                by_ticket: admit.invite.is_some(),
                time: h.statement.time,
                expires: admit.expires.min(cap),
                void,
                key_revoked,
            });
        }
    }

    /// `key` as a member at `now`, its admissions standing for `tolerance_secs` longer than they say.
    pub(in crate::statement) fn member(
        &self,
        key: &KeyId,
        set: &Set,
        now: UnixTime,
        tolerance_secs: u64,
    ) -> Option<Member> {
        let live = |a: &&Admission| a.is_live(now, tolerance_secs);
        let live: Vec<&Admission> = self.hosts.get(key)?.iter().filter(live).collect();
        let best = live.iter().max_by_key(|a| (!a.by_ticket, a.time, a.id))?;
        let Kind::Admit(admit) = &set.get(&best.id)?.statement.kind else {
            return None;
        };
        let mut labels = admit.labels.clone();
        let invite = admit.invite.and_then(|id| set.get(&id)).map(|h| &h.statement.kind);
        if let Some(Kind::Invite(invite)) = invite {
            labels.extend(invite.labels.clone());
        }
        Some(Member {
            key: *key,
            name: admit.name.clone(),
            labels,
            admitted_by: best.id,
            since: live.iter().map(|a| a.time).min()?,
            expires: live.iter().map(|a| a.expires).max()?,
        })
    }

    /// Whether `key` is a member at `now`.
    pub(in crate::statement) fn is_member(&self, key: &KeyId, now: UnixTime, tolerance_secs: u64) -> bool {
        self.hosts.get(key).is_some_and(|all| all.iter().any(|a| a.is_live(now, tolerance_secs)))
    }

    /// Keys that were ever admitted.
    pub(in crate::statement) fn hosts(&self) -> impl Iterator<Item = &KeyId> {
        self.hosts.keys()
    }

    /// An invite in force: how many hosts it admitted, and whether `host` is one of them.
    pub(in crate::statement) fn invite(&self, id: &StatementId, host: Option<&KeyId>) -> Option<(u32, bool)> {
        let at = self.invites.get(id).filter(|at| !at.revoked)?;
        let used = u32::try_from(at.hosts.len()).unwrap_or(u32::MAX);
        Some((used, host.is_some_and(|host| at.hosts.contains(host))))
    }

    /// Invites in force.
    pub(in crate::statement) fn invites(&self) -> impl Iterator<Item = StatementId> {
        self.invites.iter().filter(|(_, at)| !at.revoked).map(|(id, _)| *id)
    }

    fn ticket_status<'s>(&self, h: &Held, by: StatementId, set: &'s Set) -> (Status, Option<&'s Invite>) {
        let invite = match set.get(&by).map(|h| &h.statement.kind) {
            Some(Kind::Invite(invite)) if self.invites.contains_key(&by) => invite,
            Some(Kind::Invite(_)) | None => return (Status::Pending(Why::Invite), None),
            Some(_) => return (Status::Ignored(Why::NotAllowed), None),
        };
        let status = if h.statement.by != invite.ticket {
            Status::Ignored(Why::NotAllowed)
        } else if h.statement.time > invite.expires {
            Status::Ignored(Why::InviteExpired)
        } else {
            Status::Effective
        };
        (status, Some(invite))
    }
}

impl KeyRevoked {
    /// Whether `admission` was made after this, and so stands. A ticket's never does: its time is the joiner's word.
    fn is_before(&self, admission: &Statement) -> bool {
        match admission.chain {
            Some(chain) if admission.by == self.by => chain.seq > self.seq,
            Some(_) => admission.time > self.time,
            None => false,
        }
    }
}

impl Admission {
    fn is_live(&self, now: UnixTime, tolerance_secs: u64) -> bool {
        self.void.is_none() && !self.key_revoked && now <= self.expires.plus(tolerance_secs)
    }
}
