//! The ladder at the command line's door: what stands, what waits and why, and the log.

mod draft;
mod hosts;
mod log;

use std::collections::BTreeSet;

pub(super) use draft::draft;
pub(super) use hosts::hosts;
pub(super) use log::log;

use weighlock_protocol::statement::{Ledger, Status};
use weighlock_protocol::{Artifact, KeyId, ManifestDigest, Reference, StatementId};

use crate::cluster::now;
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::follow::{self, Because};
use crate::local::message::{
    Ballot, FollowRule, FollowedRow, Following, HeadInfo, KeyRoles, LadderStatus, PendingRow, PolicyInfo,
    RoleRow, Standing, StandingKind,
};

/// What became of a statement.
pub(super) fn standing(node: &Node, statement: StatementId) -> Standing {
    let ledger = node.facts.ledger();
    let ballot = ballot(&ledger, &statement);
    let (status, mut why) = match ledger.status(&statement) {
        None => (StandingKind::Unknown, vec!["it is not on this host".to_owned()]),
        Some(Status::Effective) => (StandingKind::Effective, Vec::new()),
        Some(Status::Pending(why)) => (StandingKind::Pending, vec![why.to_string()]),
        Some(Status::Ignored(why)) => (StandingKind::Ignored, vec![why.to_string()]),
    };
    if status == StandingKind::Pending
        && let Some((_, all)) = &ballot
    {
        why = all.clone();
    }
    Standing { statement, status, why, ballot: ballot.map(|(ballot, _)| ballot) }
}

/// Policy, heads and what waits.
///
/// # Errors
/// Not a name.
pub(super) fn status(node: &Node, name: &str) -> Result<LadderStatus> {
    let artifact = artifact(name)?;
    let ledger = node.facts.ledger();
    let heads = ledger.heads_of(&artifact).map(|head| {
        let closed = ledger.may_open(&artifact, &head.manifest, &head.channel.hardware, now()).err();
        HeadInfo {
            stage: head.channel.stage,
            hardware: head.channel.hardware,
            digest: head.manifest,
            tags: tags(&ledger, &artifact, &head.manifest),
            statement: head.statement,
            epoch: head.epoch,
            since: head.since.0,
            by: log::signer(&ledger, &head.by),
            rolled_back: head.rolled_back,
            expires: head.expires.map(|at| at.0),
            closed: closed.map(|closed| closed.to_string()),
        }
    });
    let pending = ledger.pending_of(&artifact).into_iter().filter_map(|id| {
        let statement = ledger.statement(&id)?;
        let channel = statement.kind.channel()?;
        let weighlock_protocol::statement::Kind::Promote(promotion) = &statement.kind else { return None };
        let (ballot, why) = ballot(&ledger, &id).unzip();
        Some(PendingRow {
            statement: id,
            stage: channel.stage,
            hardware: channel.hardware.clone(),
            digest: promotion.manifest,
            tags: tags(&ledger, &artifact, &promotion.manifest),
            by: log::signer(&ledger, &statement.by),
            time: statement.time.0,
            why: why.unwrap_or_default(),
            ballot,
        })
    });
    Ok(LadderStatus {
        hardware: node.hardware.clone(),
        policy: policy(&ledger, &artifact),
        heads: heads.collect(),
        pending: pending.collect(),
        artifact,
    })
}

/// Which channels this host follows, after it was told of one more or less. Blocks on the disk.
///
/// # Errors
/// Not a channel, or the store failed.
pub(super) fn follow(node: &Node, reference: Option<&str>, stop: bool) -> Result<Following> {
    if let Some(reference) = reference {
        follow::tell(&node.store, &reference.parse()?, stop)?;
        node.facts.nudge();
    }
    let told = follow::told(&node.store)?;
    let here = follow::channels(node, &told).into_iter().map(|((artifact, stage), why)| FollowedRow {
        channel: format!("{artifact}:{stage}"),
        by_rule: why == Because::Rule,
    });
    let here = here.collect();
    let rules = node
        .facts
        .ledger()
        .follows()
        .into_iter()
        .map(|rule| FollowRule { channel: format!("{}:{}", rule.artifact, rule.stage), on: rule.on });
    Ok(Following { here, rules: rules.collect() })
}

/// Who may do what.
///
/// # Errors
/// The root is not here.
pub(super) fn keys(node: &Node) -> Result<KeyRoles> {
    let ledger = node.facts.ledger();
    let root = ledger.root(now()).ok_or_else(|| Error::unavailable("the cluster's root is not here yet"))?;
    let rows = root.root.roles.iter().map(|(role, spec)| {
        let row = RoleRow {
            keys: spec.keys.iter().copied().collect(),
            threshold: spec.threshold,
            namespaces: spec.namespaces.iter().map(ToString::to_string).collect(),
            members: spec.members,
        };
        (*role, row)
    });
    Ok(KeyRoles {
        cluster: node.cluster,
        version: root.root.version,
        expires: root.root.expires.0,
        roles: rows.collect(),
        names: ledger.members(now()).map(|member| (member.key, member.name)).collect(),
    })
}

/// The envelope of a statement, by its id or the beginning of its id. Blocks on the disk.
///
/// # Errors
/// None or several begin so.
pub(super) fn envelope(node: &Node, id: &str) -> Result<String> {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    let found: BTreeSet<StatementId> = {
        let ledger = node.facts.ledger();
        ledger.statements().filter(|id| id.hex().starts_with(hex)).take(2).collect()
    };
    let one = match (hex.len() >= ID_DIGITS_MIN, found.len()) {
        (false, _) => {
            return Err(Error::invalid(format!("{id:?} is no file, and too short for a statement's id"))
                .hint(format!("give {ID_DIGITS_MIN} hex digits or more")));
        }
        (true, 1) => found.into_iter().next(),
        (true, 0) => None,
        (true, _) => return Err(Error::invalid(format!("several statements begin with {id}"))),
    };
    let one = one.ok_or_else(|| Error::not_found(format!("no statement {id} is on this host")))?;
    let bytes = node.facts.envelopes(&[one])?.pop();
    let bytes = bytes.ok_or_else(|| Error::integrity(format!("statement {one} is not in the store")))?;
    String::from_utf8(bytes).map_err(Error::integrity)
}

/// Fewest digits of a statement's id.
const ID_DIGITS_MIN: usize = 8;

/// `ns/name`, also out of a reference.
fn artifact(name: &str) -> Result<Artifact> {
    match name.parse::<Artifact>() {
        Ok(artifact) => Ok(artifact),
        Err(_) => Ok(name.parse::<Reference>()?.artifact),
    }
}

fn policy(ledger: &Ledger, artifact: &Artifact) -> Option<PolicyInfo> {
    let status = ledger.policy_of(artifact)?;
    let in_force = status.in_force.as_ref();
    let text = match in_force {
        Some((.., Some(policy))) => policy.to_string(),
        Some((.., None)) => "this release cannot read it".to_owned(),
        None => "none is in force: two dispute a version".to_owned(),
    };
    Some(PolicyInfo {
        scope: status.scope.to_string(),
        statement: in_force.map(|(id, ..)| *id),
        version: in_force.map(|(_, version, ..)| *version),
        digest: in_force.map(|(_, _, digest, _)| *digest),
        text,
    })
}

/// Where the votes on a promotion stand, and all that it lacks.
fn ballot(ledger: &Ledger, promotion: &StatementId) -> Option<(Ballot, Vec<String>)> {
    let ballot = ledger.ballot(promotion, now())?;
    let name = |key: &KeyId| who(ledger, key);
    let mut why: Vec<String> = ballot.holds.iter().map(ToString::to_string).collect();
    let missing: Vec<String> = ballot.witnesses.difference(&ballot.cosigned).map(name).collect();
    if ballot.cosigned.len() < usize::try_from(ballot.needed).unwrap_or(usize::MAX) {
        let missing = if missing.is_empty() { "witnesses".to_owned() } else { missing.join(", ") };
        why.push(format!("{} of {} cosignatures; waits for {missing}", ballot.cosigned.len(), ballot.needed));
    }
    let told =
        Ballot { cosigned: ballot.cosigned.iter().map(name).collect(), missing, needed: ballot.needed };
    Some((told, why))
}

/// A host's name, or its key.
fn who(ledger: &Ledger, key: &KeyId) -> String {
    ledger.member(key, now()).map_or_else(|| key.short(), |member| member.name)
}

/// The tags of an artifact that mean a manifest.
fn tags(ledger: &Ledger, artifact: &Artifact, manifest: &ManifestDigest) -> Vec<String> {
    let mut tags: Vec<String> = ledger
        .publishes_of(manifest)
        .filter(|p| p.publish.artifact == *artifact)
        .map(|p| p.publish.tag.to_string())
        .collect();
    tags.dedup();
    tags
}
