//! Nothing gated opens without evidence on this very host: a policy, a passing verdict under it, most witnesses.

use std::collections::BTreeSet;

use weighlock_protocol::gate::{Outcome, Policy};
use weighlock_protocol::statement::{Grounds, Kind, Ledger, Role, Status, Why};
use weighlock_protocol::{Artifact, KeyId, ManifestDigest, StatementId};

use super::moves::{may_move, promotion};
use super::quorum::{root, witnesses};
use super::{Check, Seen};
use crate::fold::climb::{ARTIFACTS, HARDWARE};
use crate::fold::host::EPOCH;
use crate::fold::world::FoldWorld;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Evidence;

impl Check for Evidence {
    fn name(&self) -> &'static str {
        "evidence"
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
        let ledger = &world.hosts()[host].ledger;
        for artifact in ARTIFACTS {
            let artifact: Artifact = artifact.parse().map_err(|e| format!("{artifact}: {e}"))?;
            let gated = is_gated(ledger, &artifact);
            for manifest in world.truth().manifests_of(&artifact) {
                for hardware in HARDWARE {
                    let why = match ledger.may_open(&artifact, &manifest, hardware, EPOCH) {
                        Ok(Grounds::Ungated) if !gated => Ok(()),
                        Ok(Grounds::Ungated) => Err("it has a policy".to_owned()),
                        Ok(Grounds::Promoted { statement, .. }) => {
                            carried(ledger, &artifact, &manifest, hardware, &statement)
                        }
                        Err(_) => Ok(()),
                    };
                    why.map_err(|why| {
                        format!("host {host} opens {artifact}@{} on {hardware}: {why}", manifest.short())
                    })?;
                }
            }
        }
        Ok(())
    }
}

/// Whether an admin ever set a policy that was not taken back.
fn is_gated(ledger: &Ledger, artifact: &Artifact) -> bool {
    ledger.statements().any(|id| {
        let covers = match ledger.statement(&id).map(|s| &s.kind) {
            Some(Kind::Policy(set)) => set.scope.covers(artifact),
            _ => false,
        };
        covers
            && matches!(
                ledger.status(&id),
                Some(
                    Status::Effective
                        | Status::Ignored(Why::Superseded | Why::PolicyConflict | Why::Equivocation)
                        | Status::Pending(Why::Held(_))
                )
            )
    })
}

/// Whether what a manifest opens by rests on all that it should.
fn carried(
    ledger: &Ledger,
    artifact: &Artifact,
    manifest: &ManifestDigest,
    hardware: &str,
    statement: &StatementId,
) -> Result<(), String> {
    // A rollback leads back to the promotion of what it went back to.
    let mut id = *statement;
    while let Some(Kind::Rollback(r)) = ledger.statement(&id).map(|s| &s.kind) {
        id = r.said.to.ok_or("a rollback to nothing")?;
    }
    let p = promotion(ledger, &id).ok_or("no promotion is here")?;
    if p.manifest != *manifest || p.channel.artifact != *artifact {
        return Err("the promotion is of something else".to_owned());
    }
    if p.channel.hardware != hardware && p.channel.hardware != "any" {
        return Err(format!("the promotion is for {}", p.channel.hardware));
    }
    let digest = p.said.policy.ok_or("the promotion is older than the policy")?;
    let policy = ledger.statements().find_map(|id| match &ledger.statement(&id)?.kind {
        Kind::Policy(set) if set.policy == digest && set.scope.covers(artifact) => {
            Policy::parse(&set.text).ok()
        }
        _ => None,
    });
    if policy.is_none_or(|policy| policy.digest() != digest) {
        return Err("its policy is not here".to_owned());
    }
    let named = root(ledger, p.said.root).ok_or("its root is not here")?;
    let evaluators = |by: &KeyId| {
        (1..)
            .map_while(|n| root(ledger, n))
            .any(|root| root.roles.get(&Role::Evaluator).is_some_and(|role| role.keys.contains(by)))
    };
    let passed = p.said.verdicts.iter().filter_map(|id| ledger.statement(id)).any(|s| match &s.kind {
        Kind::Verdict(v) => {
            (&v.artifact, v.manifest, v.ruling.policy) == (artifact, *manifest, digest)
                && v.ruling.outcome == Outcome::Pass
                && v.ruling.hardware == p.channel.hardware
                && evaluators(&s.by)
        }
        _ => false,
    });
    if !passed {
        return Err("no passing verdict is here".to_owned());
    }
    let author = ledger.statement(&id).map(|s| s.by);
    let promoter = named.roles.get(&Role::Promoter).map(|role| &role.keys);
    if !author.is_some_and(|by| promoter.is_some_and(|keys| keys.contains(&by))) {
        return Err("no promoter promoted it".to_owned());
    }
    let all = witnesses(ledger, p.said.root);
    let signed: BTreeSet<KeyId> = ledger
        .statements()
        .filter_map(|of| ledger.statement(&of))
        .filter(|s| matches!(&s.kind, Kind::Cosign(c) if c.said.promotion == id && c.manifest == *manifest))
        .map(|s| s.by)
        .filter(|by| all.contains(by))
        .collect();
    if signed.len() <= all.len() / 2 {
        return Err(format!("{} of {} witnesses", signed.len(), all.len()));
    }
    Ok(())
}
