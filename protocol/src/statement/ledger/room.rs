//! How many statements and bytes a ledger has room for, so that whoever floods it keeps nothing else out.

use std::collections::BTreeMap;
use std::ops::Add;

use super::{Checked, Ledger, Refusal, SAID_SHARE};
use crate::id::KeyId;
use crate::statement::body::{Kind, Role, Root, Statement};
use crate::statement::envelope::{Envelope, Signature};

/// What statements take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::statement) struct Room {
    pub(super) statements: usize,
    /// Of payloads and signatures.
    pub(super) bytes: usize,
}

/// What is taken by statements without effect, by author.
#[derive(Debug, Clone, Default)]
pub(super) struct Idle {
    by: BTreeMap<KeyId, Room>,
    all: Room,
}

impl Ledger {
    /// Whether there is room for a statement that may have no effect.
    pub(super) fn check_room(
        &self,
        statement: &Statement,
        signers: &[KeyId],
        room: Room,
    ) -> Result<(), Refusal> {
        let by = &statement.by;
        let of_author = self.said_idle.of(by) + self.authority_idle.of(by) + self.fresh.of(by);
        let author = || {
            let (statements, bytes) =
                (self.config.idle_per_author_max, self.config.idle_bytes_per_author_max);
            full("idle_per_author_max", of_author.statements + 1, statements)?;
            full("idle_bytes_per_author_max", of_author.bytes + room.bytes, bytes)
        };
        // Without the first root nothing ever has an effect, so nothing may keep it out.
        if statement.cluster.is_none() {
            return Ok(());
        }
        // What can take effect at once must not be kept out by others' junk.
        match (&statement.kind, statement.chain) {
            (Kind::Root(root), _) if self.would_rotate(root, signers) => return Ok(()),
            (_, Some(chain)) => {
                if self.chains.would_link(by, chain) && self.authority.names(by) {
                    return Ok(());
                }
                full("idle_per_author_max", self.chains.waiting(by) + 1, self.config.idle_per_author_max)?;
            }
            (Kind::Admit(admit), None) => {
                let invite = admit.invite.filter(|id| self.authority.invite(id, None).is_some());
                let invite = invite.and_then(|id| self.statement(&id)).map(|s| &s.kind);
                if matches!(invite, Some(Kind::Invite(invite)) if invite.ticket == *by) {
                    return author();
                }
            }
            _ => {}
        }
        author()?;
        let all = self.idle();
        full("idle_max", all.statements + 1, self.config.idle_max)?;
        full("idle_bytes_max", all.bytes + room.bytes, self.config.idle_bytes_max)
    }

    /// Whether there is room for one more at all. `said` leaves a part of it to what changes authority.
    pub(super) fn check_all(&self, room: Room, said: bool) -> Result<(), Refusal> {
        let of = |max: usize| if said { max - max / SAID_SHARE } else { max };
        full("statements_max", self.set.len() + room.statements, of(self.config.statements_max))?;
        full("bytes_max", self.bytes + room.bytes, of(self.config.bytes_max))
    }

    /// Whether `root` would be the next in force, whoever its author is.
    fn would_rotate(&self, root: &Root, signers: &[KeyId]) -> bool {
        let admits = |root: &Root| root.roles.get(&Role::Admin).is_some_and(|admin| admin.met_by(signers));
        self.authority
            .root()
            .is_some_and(|(id, now)| root.prev_root == Some(id) && admits(now) && admits(root))
    }

    /// Whether a statement has no room until a fold tells which of the latest ones need none.
    pub(super) fn may_make_room(&self, checked: &Checked) -> bool {
        if self.fresh.all.statements == 0 {
            return false;
        }
        let (statement, envelope) = (checked.statement(), checked.envelope());
        let signers: Vec<KeyId> = envelope.signatures().iter().map(|s| s.key).collect();
        match self.check_room(statement, &signers, Room::of(envelope)) {
            // Then a fold that finds others' to have an effect changes nothing.
            Err(Refusal::Full { limit, .. }) if limit.contains("per_author") => {
                self.fresh.of(&statement.by).statements > 0
            }
            checked => checked.is_err(),
        }
    }

    fn idle(&self) -> Room {
        self.said_idle.all + self.authority_idle.all + self.fresh.all
    }
}

impl Room {
    /// What one statement takes.
    pub(super) fn of(envelope: &Envelope) -> Self {
        let signatures = size_of_val(envelope.signatures());
        Self { statements: 1, bytes: envelope.payload().len() + signatures }
    }

    /// What further signatures of a statement take.
    pub(super) fn of_signatures(count: usize) -> Self {
        Self { statements: 0, bytes: count * size_of::<Signature>() }
    }

    fn less(self, other: Self) -> Self {
        let statements = self.statements.saturating_sub(other.statements);
        Self { statements, bytes: self.bytes.saturating_sub(other.bytes) }
    }
}

impl Add for Room {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { statements: self.statements + other.statements, bytes: self.bytes + other.bytes }
    }
}

impl Idle {
    pub(super) fn of(&self, key: &KeyId) -> Room {
        self.by.get(key).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, key: KeyId, room: Room) {
        let by = self.by.entry(key).or_default();
        *by = *by + room;
        self.all = self.all + room;
    }

    pub(super) fn remove(&mut self, key: &KeyId, room: Room) {
        if let Some(by) = self.by.get_mut(key) {
            *by = by.less(room);
            self.all = self.all.less(room);
        }
    }
}

/// Whether a limit holds for `count`, with what is to be added.
fn full(limit: &'static str, count: usize, max: usize) -> Result<(), Refusal> {
    if count <= max { Ok(()) } else { Err(Refusal::Full { limit, max }) }
}
