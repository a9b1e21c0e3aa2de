//! How far each host is with an artifact: what it has heard, holds, and has open.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use weighlock_protocol::statement::{Ledger, Member};
use weighlock_protocol::{Artifact, KeyId, ManifestDigest};

use super::{artifact, tags};
use crate::cluster::now;
use crate::daemon::Node;
use crate::error::Result;
use crate::local::message::{HostState, RolloutHosts};
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
    told.insert(node.host, rollout::tell(&node.facts, &node.leases, &artifact));
    let records = node.control.host_records().borrow().clone();
    let ledger = node.facts.ledger();
    let ours = &told[&node.host];
    let mut hosts: Vec<HostState> = members
        .into_iter()
        .map(|member| {
            let this_host = member.key == node.host;
            let connected = this_host || connected.contains(&member.key);
            let told = told.get(&member.key);
            let hardware = records.get(&member.key).map(|known| known.record.hardware.clone());
            let hardware = if this_host { node.hardware.clone() } else { hardware.unwrap_or_default() };
            let complete: BTreeSet<ManifestDigest> = if this_host {
                complete_here(node, &ledger, &artifact)
            } else {
                let held = records.get(&member.key).into_iter().flat_map(|known| &known.record.held);
                held.filter(|held| held.complete).map(|held| held.digest).collect()
            };
            let heads: Vec<_> = ledger
                .heads_of(&artifact)
                .filter(|head| head.channel.hardware == hardware || head.channel.hardware == "any")
                .collect();
            let holds = heads.iter().filter(|head| complete.contains(&head.manifest));
            let holds = holds
                .map(|head| format!("{}:{}", label(&ledger, &artifact, &head.manifest), head.channel.stage));
            let heard = told.is_some_and(|told| told.heads == ours.heads);
            let open = told.map(|told| {
                told.open.iter().map(|digest| label(&ledger, &artifact, digest)).collect::<Vec<_>>()
            });
            let lags = lags(&ledger, &artifact, &hardware, connected, heard, told);
            HostState {
                host: member.key,
                name: member.name,
                this_host,
                connected,
                heard,
                holds: holds.collect(),
                open,
                lags,
            }
        })
        .collect();
    hosts.sort_by_key(|host| (!host.this_host, host.name.clone()));
    Ok(RolloutHosts { hosts })
}

fn lags(
    ledger: &Ledger,
    artifact: &Artifact,
    hardware: &str,
    connected: bool,
    heard: bool,
    told: Option<&Told>,
) -> Option<String> {
    if !connected {
        return None;
    }
    if !heard {
        return Some("has not heard of the heads".to_owned());
    }
    let shut = told
        .into_iter()
        .flat_map(|told| &told.open)
        .find(|digest| ledger.may_open(artifact, digest, hardware, now()).is_err());
    shut.map(|digest| {
        format!("still has {} open, which may not be opened any more", label(ledger, artifact, digest))
    })
}

fn complete_here(node: &Node, ledger: &Ledger, artifact: &Artifact) -> BTreeSet<ManifestDigest> {
    let heads = ledger.heads_of(artifact).map(|head| head.manifest);
    let is_whole = |digest: &ManifestDigest| {
        crate::facts::manifest(&node.store, digest)
            .ok()
            .flatten()
            .is_some_and(|manifest| node.store.manifest_complete(&manifest).unwrap_or(false))
    };
    heads.filter(is_whole).collect()
}

fn label(ledger: &Ledger, artifact: &Artifact, digest: &ManifestDigest) -> String {
    tags(ledger, artifact, digest).into_iter().next().unwrap_or_else(|| digest.short())
}
