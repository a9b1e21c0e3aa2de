//! What a promotion or rollback lacks.

use std::fmt;

use crate::id::{ManifestDigest, Sha256, StatementId};
use crate::names::Stage;
use crate::time::UnixTime;

/// One thing that keeps a promotion or rollback from taking effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// The head that it replaces is not here, or does not stand itself.
    Parent,
    /// Its root is not here, or older than the one that its parent counts on.
    Root,
    /// The root has expired.
    RootExpired,
    /// Another root is in force by now.
    RootReplaced,
    /// Its epoch is not above its parent's.
    Epoch,
    /// It skips an epoch in which another promotion may still win.
    EpochOpen,
    /// The policy statement that it names is not here.
    PolicyMissing,
    /// The policy before it is not here.
    PolicyBefore,
    /// This release cannot read the policy.
    PolicyUnreadable,
    /// Another policy is in force by now, or none.
    PolicyReplaced {
        /// What is in force.
        in_force: Option<Sha256>,
    },
    /// Nothing is published under the artifact's name with this manifest.
    NotPublished,
    /// No passing verdict for the channel's hardware: the gate did not run.
    NoVerdict,
    /// No passing verdict for another kind of hardware that the policy names.
    NoVerdictElsewhere,
    /// The newest verdict did not pass.
    NotPassed {
        /// That verdict.
        verdict: StatementId,
    },
    /// A passing verdict under another policy.
    OtherPolicy {
        /// The policy of the verdict.
        policy: Sha256,
    },
    /// A passing verdict against something else than the head that is replaced.
    OtherBaseline {
        /// What it was held against.
        found: Option<ManifestDigest>,
        /// What it should be held against.
        expected: Option<ManifestDigest>,
    },
    /// The manifest was rolled back here after its last passing verdict.
    RolledBack {
        /// When.
        at: UnixTime,
    },
    /// It was not promoted to the stage before.
    StageBefore {
        /// Which.
        stage: Stage,
    },
    /// It has not been long enough in the stage before.
    TooSoon {
        /// The stage.
        stage: Stage,
        /// From when on.
        from: UnixTime,
    },
    /// The policy asks for requests served in the stage before, which nothing has counted.
    Requests {
        /// The stage.
        stage: Stage,
        /// How many.
        needed: u64,
    },
    /// Too few people have approved.
    Approvals {
        /// Who counts.
        have: u64,
        /// How many it takes.
        needed: u64,
    },
    /// Too few witnesses have cosigned.
    Cosignatures {
        /// How many have.
        have: u32,
        /// How many it takes.
        needed: u32,
    },
    /// There are no witnesses.
    NoWitness,
    /// Its date is too far from this host's clock.
    Clock {
        /// What it says.
        time: UnixTime,
    },
    /// Its author's key was revoked, or has signed two statements at one place.
    Author,
    /// This witness has signed another promotion in its place.
    Voted {
        /// That one.
        promotion: StatementId,
    },
    /// What a rollback names as bad is not the head's manifest.
    NotTheHead,
    /// What a rollback goes back to is no earlier head, or was rolled back too.
    Target,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hold::Parent => f.write_str("the head that it replaces is not here or has no effect"),
            Hold::Root => f.write_str("the root that it names is not here or is older than its parent's"),
            Hold::RootExpired => f.write_str("the cluster's root has expired; an admin must sign a new one"),
            Hold::RootReplaced => f.write_str("the cluster has a newer root; promote again"),
            Hold::Epoch => f.write_str("its epoch is not above that of the head that it replaces"),
            Hold::EpochOpen => f.write_str("another promotion of an earlier epoch may still win; wait for the witnesses"),
            Hold::PolicyMissing => f.write_str("the policy that it was made under is not here yet"),
            Hold::PolicyBefore => f.write_str("the policy before it is not here yet"),
            Hold::PolicyUnreadable => {
                f.write_str("this release cannot read the policy that it was made under; update weighlock on this host")
            }
            Hold::PolicyReplaced { in_force: Some(policy) } => {
                write!(f, "policy {} is in force by now; gate again under it and promote again", policy.short())
            }
            Hold::PolicyReplaced { in_force: None } => {
                f.write_str("no policy is in force for it; see `weighlock policy show`")
            }
            Hold::NotPublished => f.write_str("it is not published under this name; `weighlock add` publishes"),
            Hold::NoVerdict => {
                f.write_str("no evidence: no verdict on it for this hardware; `weighlock eval REF --run CMD`, then `weighlock gate REF --out verdict.dsse` and `weighlock statement import verdict.dsse`")
            }
            Hold::NoVerdictElsewhere => f.write_str(
                "no evidence for another kind of hardware that the policy names; run `weighlock gate` there",
            ),
            Hold::NotPassed { verdict } => {
                write!(f, "the gate did not pass it; see `weighlock statement show {}`", verdict.short())
            }
            Hold::OtherPolicy { policy } => {
                write!(f, "its verdict was given under policy {}; gate again under the present one", policy.short())
            }
            Hold::OtherBaseline { found, expected } => write!(
                f,
                "its verdict was held against {}, but {} is the head that it replaces; gate again against that",
                baseline(*found),
                baseline(*expected)
            ),
            Hold::RolledBack { at } => {
                write!(f, "it was rolled back at {at}, after its last passing verdict; evaluate and gate it again")
            }
            Hold::StageBefore { stage } => write!(f, "it has not been in {stage}; promote it there first"),
            Hold::TooSoon { stage, from } => write!(f, "it must stay in {stage} until {from}"),
            Hold::Requests { stage, needed } => write!(
                f,
                "the policy asks for {needed} requests served in {stage}, and this release counts none; leave out min_requests"
            ),
            Hold::Approvals { have, needed } => write!(
                f,
                "{have} of {needed} approvals; another promoter than its author runs `weighlock approve`"
            ),
            Hold::Cosignatures { have, needed } => write!(f, "{have} of {needed} cosignatures by witnesses"),
            Hold::NoWitness => f.write_str("the root names no witness for it; add one with `weighlock keys`"),
            Hold::Clock { time } => write!(f, "it is dated {time}, too far from this host's clock; promote again"),
            Hold::Author => f.write_str("the key of its author is revoked or has signed two statements at one place"),
            Hold::Voted { promotion } => {
                write!(f, "this witness has already signed promotion {} in its place", promotion.short())
            }
            Hold::NotTheHead => f.write_str("the manifest that it calls bad is not the one of the head that it undoes"),
            Hold::Target => f.write_str("what it goes back to is no earlier head of this channel, or was rolled back too"),
        }
    }
}

fn baseline(digest: Option<ManifestDigest>) -> String {
    digest.map_or_else(|| "nothing".to_owned(), |digest| digest.short())
}
