//! What a statement of the set does, and why not.

use std::fmt;

use super::ladder::Hold;
use crate::id::StatementId;

/// What a statement of the set does now. Later statements may change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// It counts.
    Effective,
    /// It waits for another statement or signature.
    Pending(Why),
    /// It does not count.
    Ignored(Why),
}

/// Why a statement has no effect, or none yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// A statement before it in its author's chain is not here.
    Predecessor {
        /// The nearest that is missing.
        missing: StatementId,
    },
    /// The root before it is not here or not in force.
    RootBefore,
    /// A root that not enough admins have signed.
    Threshold,
    /// The invite that it names is not here or not in force.
    Invite,
    /// What it names as its predecessor is none.
    BrokenChain,
    /// Its author said two things at this place of its chain or an earlier one.
    Equivocation,
    /// Another root of the same version has signatures enough.
    RootFork,
    /// A root of a version that another one already has.
    Superseded,
    /// Its signers do not hold the role that it takes.
    NotAllowed,
    /// The invite had expired.
    InviteExpired,
    /// The invite has admitted as many hosts as it may.
    InviteUsed,
    /// It was revoked.
    Revoked,
    /// This release does not know its kind.
    UnknownKind,
    /// A promotion or rollback that lacks something.
    Held(Hold),
    /// A promotion or rollback of a head that another one replaced meanwhile.
    Overtaken,
    /// A promotion that a rollback undid before it was built upon.
    RolledBack,
    /// A rollback of a head upon which two later promotions stand.
    TooLate,
    /// Two promotions replace the same head and both have cosignatures enough.
    HeadConflict,
    /// A policy that another one of the same version disputes.
    PolicyConflict,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Predecessor { missing } => {
                write!(f, "statement {} before it in its author's chain is not here yet", missing.short())
            }
            Why::RootBefore => f.write_str("the root before it is not here yet"),
            Why::Threshold => f.write_str("not enough admins have signed this root"),
            Why::Invite => f.write_str("the invite that it names is not here or not in force"),
            Why::BrokenChain => f.write_str("what it names as its predecessor is none"),
            Why::Equivocation => f.write_str("its author said two things at one place; rotate that key away"),
            Why::RootFork => f.write_str("another root of this version exists; a person must choose one"),
            Why::Superseded => f.write_str("another root of this version is in force"),
            Why::NotAllowed => f.write_str("its signers do not hold the role for this"),
            Why::InviteExpired => f.write_str("the invite had expired; ask an admin for a new one"),
            Why::InviteUsed => f.write_str("the invite is used up; ask an admin for a new one"),
            Why::Revoked => f.write_str("it was revoked"),
            Why::Held(hold) => hold.fmt(f),
            Why::Overtaken => f.write_str("the channel has another head by now; promote again to replace that one"),
            Why::RolledBack => f.write_str("a rollback undid it"),
            Why::TooLate => {
                f.write_str("two later promotions already stand on the head that it undoes; roll back the present head")
            }
            Why::HeadConflict => f.write_str(
                "another promotion replaces the same head with cosignatures enough; a witness signed twice; promote anew",
            ),
            Why::PolicyConflict => {
                f.write_str("another policy has the same version, so neither is in force; revoke one of them")
            }
            Why::UnknownKind => f.write_str("this release does not know its kind; it is kept and passed on"),
        }
    }
}
