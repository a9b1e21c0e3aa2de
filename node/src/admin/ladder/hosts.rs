//! How far each host is with an artifact: what it has heard, holds, and has open.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use weighlock_protocol::statement::{Head, Ledger, Member};
use weighlock_protocol::{Artifact, KeyId, ManifestDigest, Stage, StatementId};

use super::{artifact, tags};
use crate::cluster::now;
use crate::daemon::Node;
use crate::error::Result;
use crate::fetch::blocking;
use crate::local::message::{HostStage, HostState, RolloutHosts};
use crate::rollout::{self, Told};

/// How long a host may take to answer.
const PATIENCE: Duration = Duration::from_millis(1500);

/// All members, this host first.
///
/// # Errors
/// Not a name.
pub(in super::super) async fn hosts(node: &Arc<Node>, name: &str) -> Result<RolloutHosts> {
    let artifact = artifact(name)?;
    let connected: BTreeSet<KeyId> =
        node.control.peers().await.unwrap_or_default().into_iter().map(|peer| peer.key).collect();
    let listed = |member: &Member| !node.forgotten.contains(&member.key);
    let members: Vec<_> = node.facts.ledger().members(now()).filter(listed).collect();
    let mut asked = tokio::task::JoinSet::new();
    for host in connected.iter().filter(|host| members.iter().any(|member| member.key == **host)) {
        let (control, host, artifact) = (node.control.clone(), *host, artifact.clone());
        asked.spawn(async move {
            let told = tokio::time::timeout(PATIENCE, rollout::ask(&control, host, &artifact)).await;
            (host, told.ok().flatten())
        });
    }
    let mut told = std::collections::BTreeMap::new();
    while let Some(answer) = asked.join_next().await {
        if let Ok((host, Some(answer))) = answer {
            told.insert(host, answer);
        }
    }
    let own = node.clone();
    let about = artifact.clone();
    let ours = blocking(move || Ok(rollout::tell(&own.facts, &own.store, &own.leases, &about))).await?;
    told.insert(node.host, ours);
    let records = node.control.host_records().borrow().clone();
    let ledger = node.facts.ledger();
    let mut hosts: Vec<HostState> = members
        .into_iter()
        .map(|member| {
            let this_host = member.key == node.host;
            let connected = this_host || connected.contains(&member.key);
            let record = records.get(&member.key).map(|known| &known.record);
            let hardware = record.map(|record| record.hardware.clone());
            let hardware = if this_host { node.hardware.clone() } else { hardware.unwrap_or_default() };
            let mut labels = member.labels;
            labels.extend(record.map(|record| record.labels.clone()).unwrap_or_default());
            let told = told.get(&member.key);
            let mut holds: BTreeSet<ManifestDigest> = BTreeSet::new();
            match told.and_then(|told| told.holds.as_ref()) {
                Some(all) => holds.extend(all),
                None => {
                    let held = record.into_iter().flat_map(|record| &record.held);
                    holds.extend(held.filter(|held| held.complete).map(|held| held.digest));
                }
            }
            let mut follows: BTreeSet<Stage> = told.map(|told| told.follows.clone()).unwrap_or_default();
            let rules = ledger.follows().into_iter().filter(|rule| rule.artifact == artifact);
            let rules =
                rules.filter(|rule| rule.on.iter().all(|(key, value)| labels.get(key) == Some(value)));
            follows.extend(rules.map(|rule| rule.stage));
            let host = Host { connected, hardware: &hardware, told, holds: &holds, follows: &follows };
            let stages = stages(&ledger, &artifact, &host);
            let held = stages.iter().filter(|at| at.holds);
            let held =
                held.map(|at| format!("{}:{}", label(&ledger, &artifact, &at.digest), at.stage)).collect();
            let open = told.map(|told| {
                told.open.iter().map(|digest| label(&ledger, &artifact, digest)).collect::<Vec<_>>()
            });
            let heard = told.is_some_and(|told| told.heads == heads_of(&ledger, &artifact));
            let deaf = (connected && !heard).then(|| "has not heard of the heads".to_owned());
            HostState {
                host: member.key,
                name: member.name,
                this_host,
                connected,
                heard,
                holds: held,
                open,
                lags: stages.iter().find_map(|at| at.lags.clone()).or(deaf),
                stages,
            }
        })
        .collect();
    hosts.sort_by_key(|host| (!host.this_host, host.name.clone()));
    Ok(RolloutHosts { hosts })
}

/// What is known of one host.
struct Host<'a> {
    connected: bool,
    hardware: &'a str,
    told: Option<&'a Told>,
    /// Manifests that are whole there.
    holds: &'a BTreeSet<ManifestDigest>,
    follows: &'a BTreeSet<Stage>,
}

/// How far a host is with each channel that has a head for it.
fn stages(ledger: &Ledger, artifact: &Artifact, host: &Host<'_>) -> Vec<HostStage> {
    let all: BTreeSet<Stage> = ledger.heads_of(artifact).map(|head| head.channel.stage).collect();
    let heads = all.into_iter().filter_map(|stage| ledger.head(artifact, stage, host.hardware));
    let of = |head: Head| {
        let stage = head.channel.stage;
        let heard = host.told.is_some_and(|told| told.heads.contains(&head.statement));
        let (follows, holds) = (host.follows.contains(&stage), host.holds.contains(&head.manifest));
        let lags = lags(ledger, artifact, host, &head, heard, follows && !holds);
        HostStage { stage, digest: head.manifest, heard, follows, holds, lags }
    };
    heads.map(of).collect()
}

fn lags(
    ledger: &Ledger,
    artifact: &Artifact,
    host: &Host<'_>,
    head: &Head,
    heard: bool,
    lacks: bool,
) -> Option<String> {
    let stage = head.channel.stage;
    let head = label(ledger, artifact, &head.manifest);
    match (host.connected, heard, lacks) {
        (false, _, true) => {
            return Some(format!("is away; it follows {stage} and may not hold all of {head}"));
        }
        // It hears of it when it is back.
        (false, _, false) => return None,
        (true, false, _) => return Some(format!("has not heard that {stage} is {head}")),
        (true, true, true) => return Some(format!("follows {stage} and does not hold all of {head} yet")),
        (true, true, false) => {}
    }
    let open = host.told.into_iter().flat_map(|told| &told.open);
    let mut shut = open.filter(|digest| ledger.may_open(artifact, digest, host.hardware, now()).is_err());
    let digest = shut.next()?;
    Some(format!("still has {} open, which may not be opened any more", label(ledger, artifact, digest)))
}

fn heads_of(ledger: &Ledger, artifact: &Artifact) -> BTreeSet<StatementId> {
    ledger.heads_of(artifact).map(|head| head.statement).collect()
}

fn label(ledger: &Ledger, artifact: &Artifact, digest: &ManifestDigest) -> String {
    tags(ledger, artifact, digest).into_iter().next().unwrap_or_else(|| digest.short())
}
