//! What a person should look at: keys that said two things, promotions that cancel each other, what expires.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::ladder::DoubleVote;
use super::ledger::Ledger;
use super::promotion::{Channel, Scope};
use super::tags::Resolution;
use crate::gate::OnExpiry;
use crate::id::{KeyId, ManifestDigest, StatementId};
use crate::names::{Artifact, Tag};
use crate::time::UnixTime;

/// What a person should look at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// An author said two things at one place of its chain. The envelopes of the statements are the proof.
    Equivocation {
        /// The author.
        key: KeyId,
        /// The place.
        seq: u64,
        /// What it said there.
        statements: BTreeSet<StatementId>,
    },
    /// Rotation is frozen until a person chooses.
    RootFork {
        /// The version that two or more roots claim.
        version: u32,
        /// They.
        statements: BTreeSet<StatementId>,
    },
    /// The root expires soon, or has.
    RootExpiring {
        /// Its version.
        version: u32,
        /// When.
        expires: UnixTime,
    },
    /// A witness cosigned two promotions where it may cosign one: its host was restored from a backup, or its key is
    /// stolen. The cosignatures are the proof.
    DoubleVote {
        /// The witness.
        witness: KeyId,
        /// Where.
        channel: Channel,
        /// Its cosignatures.
        statements: BTreeSet<StatementId>,
    },
    /// Promotions that cancel each other.
    HeadConflict {
        /// Where; its head stays what it was.
        channel: Channel,
        /// They.
        statements: BTreeSet<StatementId>,
    },
    /// Admins disagree about a policy.
    PolicyConflict {
        /// For what.
        scope: Scope,
        /// The statements.
        statements: BTreeSet<StatementId>,
    },
    /// The promotion of a head has expired.
    HeadExpired {
        /// Where.
        channel: Channel,
        /// When.
        expired: UnixTime,
        /// Whether it no longer opens.
        stops: bool,
    },
    /// Publishers disagree about a tag.
    TagConflict {
        /// `ns/name`.
        artifact: Artifact,
        /// The tag.
        tag: Tag,
        /// Each digest and who published it.
        digests: BTreeMap<ManifestDigest, BTreeSet<KeyId>>,
    },
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Alarm::Equivocation { key, seq, .. } => write!(
                f,
                "{key} signed two statements at place {seq} of its chain: it is copied or stolen; rotate it out of the root"
            ),
            Alarm::RootFork { version, .. } => {
                write!(f, "two roots claim version {version}: rotation is frozen until a person chooses one")
            }
            Alarm::RootExpiring { version, expires } => {
                write!(f, "root {version} expires at {expires}: an admin must sign a new one")
            }
            Alarm::DoubleVote { witness, channel, .. } => write!(
                f,
                "witness {witness} cosigned two promotions that replace one head of {channel}: restored from a backup, or its key is stolen; rotate it out of the root"
            ),
            Alarm::HeadConflict { channel, statements } => write!(
                f,
                "{} promotions replace one head of {channel} with cosignatures enough, so its head stays what it was; promote anew",
                statements.len()
            ),
            Alarm::PolicyConflict { scope, .. } => write!(
                f,
                "two policies of {scope} have one version: nothing is promoted there until one is revoked"
            ),
            Alarm::HeadExpired { channel, expired, stops } => write!(
                f,
                "the promotion of {channel} expired at {expired}{}; promote it again",
                if *stops { ": it no longer opens" } else { "; it is served on" }
            ),
            Alarm::TagConflict { artifact, tag, digests } => write!(
                f,
                "{artifact}:{tag} was published with {} different contents and means nothing until one is left",
                digests.len()
            ),
        }
    }
}

impl Ledger {
    /// What a person should look at, worst first.
    pub fn alarms(&self, now: UnixTime) -> Vec<Alarm> {
        let mut alarms: Vec<Alarm> = self
            .chains
            .forks()
            .map(|(key, seq, statements)| Alarm::Equivocation { key, seq, statements: statements.clone() })
            .collect();
        if let Some((version, statements)) = self.authority.root_fork() {
            alarms.push(Alarm::RootFork { version: *version, statements: statements.clone() });
        }
        let soon = now.plus(self.config.root_warning_secs);
        if let Some((_, root)) = self.authority.root().filter(|(_, root)| soon > root.expires) {
            alarms.push(Alarm::RootExpiring { version: root.version, expires: root.expires });
        }
        alarms.extend(self.double_votes().into_iter().map(|DoubleVote { witness, channel, statements }| {
            Alarm::DoubleVote { witness, channel, statements }
        }));
        alarms.extend(
            self.head_conflicts()
                .map(|(channel, statements)| Alarm::HeadConflict { channel, statements: statements.clone() }),
        );
        alarms.extend(self.authority.policies.conflicts().map(|(scope, statements)| Alarm::PolicyConflict {
            scope: scope.clone(),
            statements: statements.clone(),
        }));
        for head in self.heads() {
            if let Some(expired) = head.expires.filter(|at| now > at.plus(self.config.clock_tolerance_secs)) {
                let stops = head.on_expiry == OnExpiry::Stop;
                alarms.push(Alarm::HeadExpired { channel: head.channel, expired, stops });
            }
        }
        for (artifact, tag) in self.tags.conflicts() {
            if let Resolution::Conflict { digests } = self.tags.resolve(artifact, tag) {
                alarms.push(Alarm::TagConflict { artifact: artifact.clone(), tag: tag.clone(), digests });
            }
        }
        alarms
    }
}
