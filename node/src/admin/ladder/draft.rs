//! Drafts of what moves a head or changes who may: filled in from what this host knows, signed by people.

use std::collections::BTreeSet;

use weighlock_protocol::gate::{Outcome, Policy};
use weighlock_protocol::statement::{
    Approval, Channel, Follow, HARDWARE_ANY, Hold, Kind, Labels, Ledger, OnChannel, Role, RoleSpec, Root,
    Scope, Statement,
};
use weighlock_protocol::{Artifact, KeyId, ManifestDigest, Reference, Selector, Stage};

use super::artifact;
use crate::cluster::{ROOT_SECONDS, now};
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::local::message::{DraftItem, DraftOf, Drafted, RootChange};

/// What `by` would sign.
///
/// # Errors
/// It makes no sense here: nothing is published as that, there is no head, a role would be left without keys.
pub(in super::super) fn draft(node: &Node, by: KeyId, of: DraftOf) -> Result<Drafted> {
    let items = match of {
        DraftOf::Policy { scope, text } => vec![policy(node, by, &scope, text)?],
        DraftOf::Promote { reference, to, hardware, note } => {
            let (artifact, manifest) = what(node, &reference)?;
            let ledger = node.facts.ledger();
            let channels = channels(node, &ledger, &artifact, &manifest, to, hardware)?;
            channels
                .into_iter()
                .map(|channel| promotion(node, &ledger, by, channel, manifest, &note))
                .collect()
        }
        DraftOf::Approve { reference, to, hardware, note } => {
            let (artifact, manifest) = what(node, &reference)?;
            let ledger = node.facts.ledger();
            let channels = channels(node, &ledger, &artifact, &manifest, to, hardware)?;
            channels
                .into_iter()
                .map(|channel| approval(node, &ledger, by, channel, manifest, &note))
                .collect()
        }
        DraftOf::Rollback { name, hardware, to, bad, again, reason } => {
            rollbacks(node, by, &name, hardware, &Away { to, bad, again, reason })?
        }
        DraftOf::Follow { reference, on, stop } => vec![follow(node, by, &reference, on, stop)?],
        DraftOf::Root { change } => vec![root(node, by, change)?],
    };
    Ok(Drafted { items })
}

fn item(node: &Node, ledger: &Ledger, by: KeyId, kind: Kind, about: String) -> DraftItem {
    let chain = kind.is_chained().then(|| ledger.next_chain(&by));
    let statement = Statement { cluster: Some(node.cluster), by, time: now(), chain, kind };
    DraftItem {
        payload: String::from_utf8(statement.to_payload()).unwrap_or_default(),
        about,
        digest: None,
        replaces: None,
        lacks: Vec::new(),
        waits: true,
        same: None,
        warnings: Vec::new(),
        holders: 0,
    }
}

fn what(node: &Node, reference: &str) -> Result<(Artifact, ManifestDigest)> {
    let reference: Reference = reference.parse()?;
    let digest = node.facts.resolve(&reference)?;
    Ok((reference.artifact, digest))
}

fn policy(node: &Node, by: KeyId, scope: &str, text: String) -> Result<DraftItem> {
    let scope: Scope = scope.parse()?;
    let policy = Policy::parse(&text).map_err(|e| Error::invalid(e.to_string()))?;
    let ledger = node.facts.ledger();
    let draft = ledger.draft_policy(scope.clone(), policy.digest(), text);
    let before = ledger.policies().find(|p| p.scope == scope).and_then(|p| p.in_force);
    let same = before.filter(|(_, _, digest, _)| *digest == policy.digest()).map(|(id, ..)| id);
    let mut warnings = Vec::new();
    let waits: Vec<&str> = policy
        .stages
        .iter()
        .filter(|(_, rule)| rule.min_requests.is_some())
        .map(|(stage, _)| stage.as_str())
        .collect();
    if !waits.is_empty() {
        let stages = waits.join(", ");
        warnings.push(format!(
            "min_requests of {stages}: this release counts no requests, so nothing gets past it"
        ));
    }
    if policy.live.is_some() {
        warnings
            .push("[live]: this release watches no live metrics; the rest of the policy holds".to_owned());
    }
    let shut: Vec<String> = ledger
        .artifacts()
        .filter(|artifact| scope.covers(artifact) && !ledger.is_gated(artifact))
        .map(ToString::to_string)
        .collect();
    if !shut.is_empty() {
        warnings.push(format!(
            "nothing of {} opens any longer until it has evidence and is promoted",
            shut.join(", ")
        ));
    }
    let kind = Kind::Policy(draft);
    Ok(DraftItem { same, warnings, ..item(node, &ledger, by, kind, scope.to_string()) })
}

/// Where a promotion goes: to the hardware that is named, or to all that passed.
fn channels(
    node: &Node,
    ledger: &Ledger,
    artifact: &Artifact,
    manifest: &ManifestDigest,
    stage: Stage,
    hardware: Option<String>,
) -> Result<Vec<Channel>> {
    let channel = |hardware: String| Channel { artifact: artifact.clone(), stage, hardware };
    if let Some(hardware) = hardware {
        if !weighlock_protocol::statement::is_hardware_key(&hardware) {
            return Err(Error::invalid(format!("{hardware:?} is no hardware key"))
                .hint("write vendor/arch such as nvidia/sm_90, or any"));
        }
        return Ok(vec![channel(hardware)]);
    }
    let in_force = ledger.policy_of(artifact).map(|status| status.in_force.map(|(_, _, digest, _)| digest));
    let Some(in_force) = in_force else {
        return Ok(vec![channel(HARDWARE_ANY.to_owned())]);
    };
    let verdicts = ledger.verdicts_on(artifact, manifest);
    let passed = verdicts.iter().map(|v| &v.body.ruling).filter(|r| r.outcome == Outcome::Pass);
    let passed: BTreeSet<String> =
        passed.filter(|r| Some(r.policy) == in_force).map(|r| r.hardware.clone()).collect();
    if passed.is_empty() {
        return Ok(vec![channel(node.hardware.clone())]);
    }
    Ok(passed.into_iter().map(channel).collect())
}

fn promotion(
    node: &Node,
    ledger: &Ledger,
    by: KeyId,
    channel: Channel,
    manifest: ManifestDigest,
    note: &str,
) -> DraftItem {
    let draft = ledger.draft_promotion(&by, &channel, manifest, now(), note.to_owned());
    let mut lacks: Vec<String> = draft.holds.iter().map(ToString::to_string).collect();
    // Approvals may come later; evidence is named in the promotion, so it must be there when that is signed.
    let mut waits = draft.holds.iter().all(|hold| matches!(hold, Hold::Approvals { .. }));
    if !ledger.root(now()).is_some_and(|root| {
        let promoters = root.root.roles.get(&Role::Promoter);
        promoters.is_some_and(|r| r.keys.contains(&by) && r.covers(channel.artifact.namespace()))
    }) {
        waits = false;
        lacks.insert(
            0,
            format!("{by} is no promoter of {}; see `weighlock keys`", channel.artifact.namespace()),
        );
    }
    DraftItem {
        digest: Some(manifest),
        replaces: draft.replaces,
        lacks,
        waits,
        same: draft.same,
        holders: holders(node, &manifest),
        ..item(node, ledger, by, Kind::Promote(draft.promotion), channel.to_string())
    }
}

fn approval(
    node: &Node,
    ledger: &Ledger,
    by: KeyId,
    channel: Channel,
    manifest: ManifestDigest,
    note: &str,
) -> DraftItem {
    let draft = ledger.draft_promotion(&by, &channel, manifest, now(), String::new());
    let said = Approval {
        parent: draft.promotion.said.parent,
        policy: draft.promotion.said.policy,
        note: note.to_owned(),
    };
    let about = channel.to_string();
    // What an approval is for is that they go away.
    let lacks = draft.holds.iter().filter(|hold| !matches!(hold, Hold::Approvals { .. }));
    DraftItem {
        digest: Some(manifest),
        replaces: draft.replaces,
        lacks: lacks.map(ToString::to_string).collect(),
        ..item(node, ledger, by, Kind::Approve(OnChannel { channel, manifest, said }), about)
    }
}

/// From what, to what, and why.
struct Away {
    to: Option<String>,
    bad: Option<String>,
    again: bool,
    reason: String,
}

fn rollbacks(
    node: &Node,
    by: KeyId,
    name: &str,
    hardware: Option<String>,
    away: &Away,
) -> Result<Vec<DraftItem>> {
    let (artifact, stage) = match name.parse::<Reference>() {
        Ok(Reference { artifact, selector: Selector::Stage(stage) }) => (artifact, stage),
        Ok(_) => {
            return Err(Error::invalid(format!("{name} names no stage"))
                .hint("a rollback is of a channel, such as ns/name:production"));
        }
        Err(_) => (artifact(name)?, Stage::Production),
    };
    let to = away.to.as_deref().map(|to| what(node, to)).transpose()?;
    let bad = away.bad.as_deref().map(|bad| what(node, bad)).transpose()?.map(|(_, digest)| digest);
    if to.as_ref().is_some_and(|(other, _)| *other != artifact) {
        return Err(Error::invalid(format!("--to names another artifact than {artifact}")));
    }
    let to = to.map(|(_, digest)| digest);
    let ledger = node.facts.ledger();
    let none = || {
        Error::not_found(format!("{artifact}:{stage} has no head to roll back"))
            .hint(format!("`weighlock rollout status {artifact}` shows its heads"))
    };
    let heads: Vec<_> = ledger.heads_of(&artifact).filter(|head| head.channel.stage == stage).collect();
    let own = ledger.head(&artifact, stage, hardware.as_deref().unwrap_or(&node.hardware));
    let chosen: Vec<_> = match (&hardware, own, &heads[..]) {
        (Some(hardware), ..) => heads.iter().filter(|head| head.channel.hardware == *hardware).collect(),
        (None, Some(own), _) => heads.iter().filter(|head| head.manifest == own.manifest).collect(),
        (None, None, [one]) => vec![one],
        (None, None, _) => heads.iter().collect(),
    };
    if chosen.is_empty() {
        return Err(none());
    }
    let first = chosen[0].manifest;
    if bad.is_some_and(|bad| bad != first) {
        // Somebody was faster, or it was never there.
        return Ok(Vec::new());
    }
    if let Some(head) = chosen.iter().find(|head| head.rolled_back).filter(|_| bad.is_none() && !away.again) {
        let tags = super::tags(&ledger, &artifact, &head.manifest).join(", ");
        return Err(Error::refused(format!(
            "{} was rolled back to {tags} at {}; again would call {tags} bad",
            head.channel, head.since
        ))
        .hint("say --again if it is bad too, or name what is bad with --bad"));
    }
    if chosen.iter().any(|head| head.manifest != first) {
        return Err(Error::invalid(format!("{artifact}:{stage} has other heads on other hardware"))
            .hint("say which with --hardware"));
    }
    let mut items = Vec::new();
    for head in chosen {
        let draft = ledger.draft_rollback(&head.channel, to, away.reason.clone());
        let draft =
            draft.map_err(|hold| Error::refused(format!("cannot roll back {}: {hold}", head.channel)))?;
        let target = ledger.target_of(&draft);
        let mut warnings = Vec::new();
        if target.is_none() {
            warnings
                .push(format!("no earlier head of {} is good: nothing opens there any more", head.channel));
        }
        let others = ledger
            .heads_of(&artifact)
            .filter(|other| other.manifest == head.manifest && other.channel.stage != stage);
        let others: BTreeSet<String> =
            others.map(|other| format!("{artifact}:{}", other.channel.stage)).collect();
        if !others.is_empty() {
            let others: Vec<String> = others.into_iter().collect();
            warnings.push(format!("it stays the head of {}", others.join(", ")));
        }
        items.push(DraftItem {
            digest: target,
            replaces: Some(head.manifest),
            warnings,
            holders: target.map_or(0, |target| holders(node, &target)),
            ..item(node, &ledger, by, Kind::Rollback(draft), head.channel.to_string())
        });
    }
    Ok(items)
}

fn follow(node: &Node, by: KeyId, reference: &str, on: Labels, stop: bool) -> Result<DraftItem> {
    let reference: Reference = reference.parse()?;
    let Selector::Stage(stage) = reference.selector else {
        return Err(Error::invalid(format!("{reference} is no channel"))
            .hint("follow a stage, such as ns/name:production"));
    };
    let kind = Kind::Follow(Follow { artifact: reference.artifact.clone(), stage, on, stop });
    Ok(item(node, &node.facts.ledger(), by, kind, reference.to_string()))
}

/// Hosts that are known to hold all of it, this one included.
fn holders(node: &Node, manifest: &ManifestDigest) -> usize {
    let here = crate::facts::manifest(&node.store, manifest).ok().flatten();
    let here = here.is_some_and(|manifest| node.store.manifest_complete(&manifest).unwrap_or(false));
    usize::from(here) + super::super::list::copies_elsewhere(node, &node.control.host_records(), manifest)
}

fn root(node: &Node, by: KeyId, change: RootChange) -> Result<DraftItem> {
    let ledger = node.facts.ledger();
    let status =
        ledger.root(now()).ok_or_else(|| Error::unavailable("the cluster's root is not here yet"))?;
    let mut next = Root {
        version: status.root.version.saturating_add(1),
        prev_root: Some(status.id),
        expires: status.root.expires.max(now().plus(ROOT_SECONDS)),
        settled: ledger.settled(),
        ..status.root.clone()
    };
    let mut about = String::new();
    let mut warnings = Vec::new();
    match change {
        RootChange::Grant { role, keys, namespaces } => {
            let keys = key_ids(&ledger, &keys)?;
            let spec = next.roles.entry(role).or_insert_with(|| RoleSpec {
                keys: BTreeSet::new(),
                threshold: 1,
                namespaces: "*".parse().into_iter().collect(),
                members: false,
            });
            if keys.iter().all(|key| spec.keys.contains(key)) && namespaces.is_empty() {
                return Err(Error::refused(format!("they hold the role of {role} already")));
            }
            spec.keys.extend(&keys);
            if !namespaces.is_empty() {
                let before: Vec<String> = spec.namespaces.iter().map(ToString::to_string).collect();
                warnings.push(format!(
                    "the role of {role} counts in {} from now on, for all who hold it; before: {}",
                    namespaces.join(" "),
                    before.join(" ")
                ));
                spec.namespaces = namespaces
                    .iter()
                    .map(|glob| glob.parse())
                    .collect::<std::result::Result<_, _>>()
                    .map_err(|e: weighlock_protocol::statement::StatementError| {
                        Error::invalid(e.to_string())
                    })?;
            }
            about.push_str(&format!("{role} for {}", shown(&ledger, &keys)));
        }
        RootChange::Remove { role, keys } => {
            let keys = key_ids(&ledger, &keys)?;
            let spec =
                next.roles.get_mut(&role).filter(|spec| keys.iter().any(|key| spec.keys.contains(key)));
            let spec =
                spec.ok_or_else(|| Error::not_found(format!("they do not hold the role of {role}")))?;
            spec.keys.retain(|key| !keys.contains(key));
            let left = u32::try_from(spec.keys.len()).unwrap_or(u32::MAX);
            if role == Role::Admin && left == 0 {
                return Err(Error::refused("a cluster without an admin can never change again"));
            }
            if spec.threshold > left.max(1) {
                return Err(Error::refused(format!("{left} keys of {role} are fewer than its threshold"))
                    .hint(format!("lower it first: `weighlock keys threshold {role} {left}`")));
            }
            about.push_str(&format!("{role} no longer for {}", shown(&ledger, &keys)));
        }
        RootChange::Threshold { role, threshold } => {
            let spec =
                next.roles.get_mut(&role).ok_or_else(|| Error::not_found(format!("nobody is {role}")))?;
            let keys = u32::try_from(spec.keys.len()).unwrap_or(u32::MAX);
            if threshold == 0 || threshold > keys {
                return Err(Error::invalid(format!("{role} has {keys} keys; {threshold} cannot sign")));
            }
            spec.threshold = threshold;
            about.push_str(&format!("{threshold} of {keys} for {role}"));
        }
        RootChange::Renew => about.push_str(&format!("valid until {}", next.expires)),
    }
    let witnesses = next.roles.get(&Role::Witness).map_or(0, |role| role.keys.len());
    if !matches!(witnesses, 1 | 3 | 5) {
        return Err(Error::refused(format!("{witnesses} witnesses: there should be 1, 3 or 5"))
            .hint("name several hosts at once; an even number only makes a majority harder"));
    }
    if status.root.roles.get(&Role::Witness) != next.roles.get(&Role::Witness)
        || status.root.roles.get(&Role::Promoter) != next.roles.get(&Role::Promoter)
    {
        let waiting = ledger.pending_promotions().len();
        if waiting > 0 {
            warnings.push(format!("{waiting} promotions that wait now must be made again"));
        }
    }
    Ok(DraftItem { warnings, ..item(node, &ledger, by, Kind::Root(next), about) })
}

/// Keys by themselves or by the names of hosts.
fn key_ids(ledger: &Ledger, names: &[String]) -> Result<BTreeSet<KeyId>> {
    let one =
        |name: &String| {
            if let Ok(key) = name.parse::<KeyId>() {
                return Ok(key);
            }
            let mut named = ledger.members(now()).filter(|member| member.name == *name);
            match (named.next(), named.next()) {
                (Some(member), None) => Ok(member.key),
                (Some(_), Some(_)) => Err(Error::invalid(format!("several hosts are named {name}"))
                    .hint("give the key, ed25519:...")),
                (None, _) => Err(Error::not_found(format!("{name} is no key and no member's name"))
                    .hint("see `weighlock member list`, or make a key with `weighlock keys new FILE`")),
            }
        };
    names.iter().map(one).collect()
}

fn shown(ledger: &Ledger, keys: &BTreeSet<KeyId>) -> String {
    let name = |key: &KeyId| ledger.member(key, now()).map_or_else(|| key.to_string(), |member| member.name);
    keys.iter().map(name).collect::<Vec<_>>().join(", ")
}
