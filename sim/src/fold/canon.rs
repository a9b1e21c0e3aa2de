//! What hosts must agree on, as one text and one hash of it: every answer of the fold, section by section.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use weighlock_protocol::statement::{Ledger, Status};
use weighlock_protocol::{KeyId, ManifestDigest, StatementId, UnixTime};

use super::climb::HARDWARE;

/// One kind of answer. Whatever the fold learns to answer (heads, policies, cosignatures) joins as one more section,
/// and is compared between hosts from then on.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// What it is about.
    pub name: &'static str,
    /// Whether it also tells of statements without effect. These may differ where a flooded host had no room.
    pub idle: bool,
    /// Writes the answers.
    pub write: fn(&Ledger, UnixTime, &mut String),
}

/// All answers of the fold.
pub const SECTIONS: &[Section] = &[
    Section { name: "roots", idle: false, write: roots },
    Section { name: "members", idle: false, write: members },
    Section { name: "invites", idle: false, write: invites },
    Section { name: "revoked", idle: false, write: revoked },
    Section { name: "tags", idle: false, write: tags },
    Section { name: "publishes", idle: false, write: publishes },
    Section { name: "policies", idle: false, write: policies },
    Section { name: "heads", idle: false, write: heads },
    Section { name: "ballots", idle: true, write: ballots },
    Section { name: "settled", idle: true, write: settled },
    Section { name: "alarms", idle: true, write: alarms },
    Section { name: "chains", idle: true, write: chains },
    Section { name: "statuses", idle: true, write: statuses },
];

/// One section's answers.
pub(super) fn section(section: &Section, ledger: &Ledger, now: UnixTime) -> String {
    let mut out = String::new();
    (section.write)(ledger, now, &mut out);
    out
}

/// Hash over the answers of all sections, or without those that tell of statements without effect.
pub fn fold_hash(ledger: &Ledger, now: UnixTime, with_idle: bool) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for one in SECTIONS.iter().filter(|s| with_idle || !s.idle) {
        let text = section(one, ledger, now);
        hasher.update(one.name.as_bytes());
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize()
}

/// Every author of the set.
fn authors(ledger: &Ledger) -> BTreeSet<KeyId> {
    ledger.statements().filter_map(|id| ledger.statement(&id)).map(|s| s.by).collect()
}

// Writing to a text cannot fail, so these ignore the result.

fn roots(ledger: &Ledger, now: UnixTime, out: &mut String) {
    let _ = writeln!(out, "{:?}", ledger.root(now));
    for root in ledger.root_chain() {
        let signers: BTreeSet<KeyId> = root.signatures().iter().map(|s| s.key).collect();
        let _ = writeln!(out, "{} {signers:?}", root.id());
    }
}

fn members(ledger: &Ledger, now: UnixTime, out: &mut String) {
    for m in ledger.members(now) {
        let _ = writeln!(out, "{} {} {m:?} {}", m.key, m.admitted_by, ledger.is_member(&m.key, now));
    }
}

fn invites(ledger: &Ledger, now: UnixTime, out: &mut String) {
    for invite in ledger.invites(now) {
        let _ = writeln!(out, "{} {invite:?}", invite.id);
    }
}

fn revoked(ledger: &Ledger, _: UnixTime, out: &mut String) {
    for revocation in ledger.revocations() {
        let _ = writeln!(out, "{} {revocation:?}", revocation.id);
    }
    for statement in ledger.revocations().filter_map(|r| ledger.statement(&r.id)) {
        if let weighlock_protocol::statement::Kind::Revoke(revoke) = &statement.kind
            && let weighlock_protocol::statement::Target::Key { key, .. } = &revoke.target
        {
            let _ = writeln!(out, "{key} {}", ledger.is_revoked(key));
        }
    }
}

fn tags(ledger: &Ledger, _: UnixTime, out: &mut String) {
    for artifact in ledger.artifacts() {
        for (tag, meaning) in ledger.tags(artifact) {
            let same = ledger.resolve_tag(artifact, tag) == meaning;
            let _ = writeln!(out, "{artifact}:{tag} {meaning:?} {same}");
        }
    }
}

fn publishes(ledger: &Ledger, _: UnixTime, out: &mut String) {
    let mut digests: BTreeSet<ManifestDigest> = BTreeSet::new();
    for id in ledger.statements() {
        if let Some(weighlock_protocol::statement::Kind::Publish(p)) = ledger.statement(&id).map(|s| &s.kind)
        {
            digests.insert(p.manifest);
        }
    }
    for digest in digests {
        for published in ledger.publishes_of(&digest) {
            let _ = writeln!(out, "{digest} {} {} {published:?}", published.id, published.by);
        }
        for artifact in ledger.artifacts() {
            for said in ledger.evaluations_of(artifact, &digest) {
                let _ = writeln!(out, "{digest} {said:?}");
            }
            for said in ledger.verdicts_on(artifact, &digest) {
                let _ = writeln!(out, "{digest} {said:?}");
            }
        }
    }
}

fn policies(ledger: &Ledger, _: UnixTime, out: &mut String) {
    for policy in ledger.policies() {
        let _ = writeln!(out, "{policy:?}");
    }
}

fn heads(ledger: &Ledger, now: UnixTime, out: &mut String) {
    for head in ledger.heads() {
        let _ = writeln!(out, "{} {} {head:?}", head.channel, head.statement);
    }
    for artifact in ledger.promoted_artifacts() {
        let _ = writeln!(out, "{artifact} keeps {:?}", ledger.kept(artifact, 2));
        let promoted: BTreeSet<ManifestDigest> = ledger
            .statements()
            .filter_map(|id| match &ledger.statement(&id)?.kind {
                weighlock_protocol::statement::Kind::Promote(p) => Some(p.manifest),
                _ => None,
            })
            .collect();
        for (digest, hardware) in promoted.iter().flat_map(|digest| HARDWARE.map(|of| (digest, of))) {
            let opens = ledger.may_open(artifact, digest, hardware, now).ok();
            let _ = writeln!(out, "{artifact} {digest} {hardware} {opens:?}");
        }
    }
}

fn ballots(ledger: &Ledger, now: UnixTime, out: &mut String) {
    for id in ledger.pending_promotions() {
        let _ = writeln!(out, "{id} {:?}", ledger.ballot(&id, now));
    }
}

fn settled(ledger: &Ledger, _: UnixTime, out: &mut String) {
    let _ = writeln!(out, "{:?}", ledger.settled());
}

fn alarms(ledger: &Ledger, now: UnixTime, out: &mut String) {
    let _ = writeln!(out, "{:?}", ledger.alarms(now));
}

fn chains(ledger: &Ledger, _: UnixTime, out: &mut String) {
    for author in authors(ledger) {
        let next = ledger.next_chain(&author);
        let prev = next.prev.map(|id: StatementId| id.to_string());
        let _ = writeln!(out, "{author} {} {prev:?}", next.seq);
    }
}

fn statuses(ledger: &Ledger, _: UnixTime, out: &mut String) {
    for id in ledger.statements() {
        let status: Option<Status> = ledger.status(&id);
        let _ = writeln!(out, "{id} {status:?} {}", ledger.envelope(&id).map_or(0, |e| e.signatures().len()));
    }
}
