//! Who did what to an artifact, when, on which evidence and under which policy.

use weighlock_protocol::statement::{Event, Kind, Ledger, Role, Status};
use weighlock_protocol::{Artifact, KeyId, ManifestDigest, StatementId, UnixTime};

use super::{artifact, tags, who};
use crate::cluster::now;
use crate::daemon::Node;
use crate::error::Result;
use crate::local::message::{LogEvent, LogHead, Logged};

/// Most characters of a verdict's reason in the log.
const WORDS_CHARS_MAX: usize = 80;

/// What was said of an artifact up to `at`, and its heads then.
///
/// # Errors
/// Not a name.
pub(in super::super) fn log(node: &Node, name: &str, at: Option<u64>) -> Result<Logged> {
    let artifact = artifact(name)?;
    let ledger = node.facts.ledger();
    let at = at.map_or_else(now, UnixTime);
    let events = ledger.history(&artifact).into_iter().filter(|event| event.time <= at);
    let heads = ledger.channels_of(&artifact).into_iter().filter_map(|channel| {
        let (statement, digest) = ledger.head_at(&artifact, channel.stage, &channel.hardware, at)?;
        let (verdicts, policy) = grounds(&ledger, &artifact, &digest, &statement);
        Some(LogHead {
            stage: channel.stage,
            hardware: channel.hardware.clone(),
            digest,
            tags: tags(&ledger, &artifact, &digest),
            statement,
            verdicts,
            policy,
        })
    });
    Ok(Logged {
        heads: heads.collect(),
        events: events.map(|event| row(&ledger, &artifact, event)).collect(),
        artifact: artifact.clone(),
    })
}

/// What a promotion rests on; a rollback rests on what brought its target there.
fn grounds(
    ledger: &Ledger,
    artifact: &Artifact,
    digest: &ManifestDigest,
    statement: &StatementId,
) -> (Vec<StatementId>, Option<weighlock_protocol::Sha256>) {
    let mut at = *statement;
    loop {
        match ledger.statement(&at).map(|s| &s.kind) {
            Some(Kind::Promote(p)) if p.channel.artifact == *artifact && p.manifest == *digest => {
                return (p.said.verdicts.iter().copied().collect(), p.said.policy);
            }
            Some(Kind::Rollback(r)) => match r.said.to {
                Some(to) => at = to,
                None => return (Vec::new(), None),
            },
            _ => return (Vec::new(), None),
        }
    }
}

fn row(ledger: &Ledger, artifact: &Artifact, event: Event) -> LogEvent {
    let name = |digest: &ManifestDigest| {
        let tags = tags(ledger, artifact, digest);
        if tags.is_empty() { digest.short() } else { tags.join(", ") }
    };
    let text = match &event.kind {
        Kind::Publish(p) => format!("{} is {}", p.tag, p.manifest),
        Kind::Evaluate(e) => {
            let figures = e.findings.figures.iter().take(4).map(|(name, value)| format!("{name} {value}"));
            let figures: Vec<String> = figures.collect();
            format!("{} on {}: {}", name(&e.manifest), e.findings.hardware, figures.join(", "))
        }
        Kind::Verdict(v) => {
            let against = v.ruling.baseline.as_ref().map_or_else(|| "nothing".to_owned(), &name);
            let why =
                v.ruling.reasons.first().map(|why| format!(": {}", first_words(why))).unwrap_or_default();
            format!(
                "{} {} against {against} on {}, policy {}{why}",
                name(&v.manifest),
                v.ruling.outcome.as_str(),
                v.ruling.hardware,
                v.ruling.policy.short()
            )
        }
        Kind::Policy(p) => format!("version {} for {}: {}", p.version, p.scope, p.policy.short()),
        Kind::Approve(a) => format!("{} for {}{}", name(&a.manifest), stage(&a.channel), note(&a.said.note)),
        Kind::Promote(p) => format!("{} to {}{}", name(&p.manifest), stage(&p.channel), note(&p.said.note)),
        Kind::Cosign(c) => format!("{} to {}", name(&c.manifest), stage(&c.channel)),
        Kind::Rollback(r) => {
            let to = r.said.to.and_then(|to| match ledger.statement(&to).map(|s| &s.kind) {
                Some(Kind::Promote(p)) => Some(name(&p.manifest)),
                _ => None,
            });
            let to = to.map(|to| format!(" to {to}")).unwrap_or_default();
            format!("{} from {}{to}{}", name(&r.manifest), stage(&r.channel), note(&r.said.reason))
        }
        _ => String::new(),
    };
    let without_effect = match event.status {
        Status::Effective => None,
        Status::Pending(why) => Some(format!("waits: {why}")),
        Status::Ignored(why) => Some(why.to_string()),
    };
    let kind = event.kind.predicate_type();
    let kind = kind.rsplit('/').nth(1).unwrap_or_default().to_owned();
    LogEvent {
        statement: event.id,
        time: event.time.0,
        by: event.by,
        who: signer(ledger, &event.by),
        kind,
        text,
        without_effect,
    }
}

/// As much of a long reason as a table bears; `weighlock statement show` has all of it.
fn first_words(text: &str) -> String {
    match text.char_indices().nth(WORDS_CHARS_MAX) {
        Some((at, _)) => format!("{} ...", &text[..at]),
        None => text.to_owned(),
    }
}

fn stage(channel: &weighlock_protocol::statement::Channel) -> String {
    format!("{} ({})", channel.stage, channel.hardware)
}

fn note(note: &str) -> String {
    if note.is_empty() { String::new() } else { format!(": {note}") }
}

/// A host's name, or the roles of a key with its beginning.
pub(super) fn signer(ledger: &Ledger, key: &KeyId) -> String {
    if ledger.member(key, now()).is_some() {
        return who(ledger, key);
    }
    let root = ledger.root(now());
    let roles = root.iter().flat_map(|root| &root.root.roles);
    let held = roles.filter(|(role, spec)| **role != Role::Witness && spec.keys.contains(key));
    let held: Vec<&str> = held.map(|(role, _)| role.as_str()).collect();
    match held.first() {
        Some(first) => format!("{first} {}", key.short()),
        None => key.short(),
    }
}
