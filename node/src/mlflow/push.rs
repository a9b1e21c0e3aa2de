//! Writing back to MLflow: digest, reference, verdict and stages as tags of a model version, stages as aliases.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, json};
use weighlock_protocol::StatementId;
use weighlock_protocol::statement::Ruling;

use super::origin::{ModelVersion, OUR_TAGS, version};
use super::{Client, ModelUri, Pick};
use crate::error::Result;
use crate::local::message::SaidRow;

/// Tags of stages go by their names after this.
const STAGE_TAG: &str = "weighlock.stage.";

/// A stage in which an artifact is the head of its channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StageHeld {
    /// `production`, ...
    pub(crate) stage: String,
    /// The channel's hardware key.
    pub(crate) hardware: String,
    /// The promotion.
    pub(crate) statement: StatementId,
}

/// What a model version should say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) aliases: BTreeSet<String>,
}

/// One thing to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub(crate) enum Change {
    SetTag { key: String, value: String, before: Option<String> },
    DeleteTag { key: String, before: String },
    SetAlias { alias: String },
    DeleteAlias { alias: String },
}

impl Wanted {
    /// What follows from what is known of an artifact. Of the verdicts the newest counts.
    pub(crate) fn new(
        reference: &str,
        digest: &str,
        verdicts: &[SaidRow<Ruling>],
        stages: &[StageHeld],
    ) -> Self {
        let mut tags = BTreeMap::from([
            (format!("{OUR_TAGS}reference"), reference.to_owned()),
            (format!("{OUR_TAGS}digest"), digest.to_owned()),
        ]);
        if let Some(newest) = verdicts.iter().max_by_key(|said| (said.time, said.id)) {
            let Ruling { outcome, policy, hardware, .. } = &newest.said;
            let verdict = json!({
                "outcome": outcome, "policy": policy, "hardware": hardware, "statement": newest.id, "time": newest.time,
            });
            tags.insert(format!("{OUR_TAGS}verdict"), verdict.to_string());
        }
        let mut by_stage: BTreeMap<&str, BTreeMap<&str, StatementId>> = BTreeMap::new();
        for held in stages {
            by_stage.entry(&held.stage).or_default().insert(&held.hardware, held.statement);
        }
        for (stage, hardware) in &by_stage {
            tags.insert(format!("{STAGE_TAG}{stage}"), json!(hardware).to_string());
        }
        Self { tags, aliases: by_stage.into_keys().map(str::to_owned).collect() }
    }
}

/// What must change for a model version to say what is wanted: nothing, if it does. Tags of ours that hold no longer go,
/// and with a stage's tag its alias; other tags and aliases are somebody else's.
///
/// # Errors
/// The server does not answer, or has no such version.
pub(crate) fn changes(client: &Client, name: &str, number: u64, wanted: &Wanted) -> Result<Vec<Change>> {
    let uri = ModelUri { name: name.to_owned(), pick: Pick::Version(number) };
    Ok(difference(&version(client, &uri)?, wanted))
}

pub(super) fn difference(now: &ModelVersion, wanted: &Wanted) -> Vec<Change> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let tags: BTreeMap<&str, String> =
        now.tags.iter().map(|tag| (tag.key.as_str(), text(&tag.value))).collect();
    let mut all = Vec::new();
    for (key, value) in &wanted.tags {
        let before = tags.get(key.as_str());
        if before != Some(value) {
            all.push(Change::SetTag { key: key.clone(), value: value.clone(), before: before.cloned() });
        }
    }
    for (key, before) in tags.iter().filter(|(key, _)| key.starts_with(OUR_TAGS)) {
        if wanted.tags.contains_key(*key) {
            continue;
        }
        if let Some(stage) = key.strip_prefix(STAGE_TAG)
            && now.aliases.iter().any(|alias| alias == stage)
        {
            all.push(Change::DeleteAlias { alias: stage.to_owned() });
        }
        all.push(Change::DeleteTag { key: (*key).to_owned(), before: before.clone() });
    }
    for alias in wanted.aliases.iter().filter(|alias| !now.aliases.contains(alias)) {
        all.push(Change::SetAlias { alias: alias.clone() });
    }
    all
}

/// Makes the changes, one after the other; what was made before a failure stays, and the next push makes the rest.
///
/// # Errors
/// The server does not answer, or refuses.
pub(crate) fn apply(client: &Client, name: &str, number: u64, all: &[Change]) -> Result<()> {
    let version = number.to_string();
    for change in all {
        match change {
            Change::SetTag { key, value, .. } => client.post(
                "mlflow/model-versions/set-tag",
                &json!({"name": name, "version": version, "key": key, "value": value}),
            ),
            Change::DeleteTag { key, .. } => client.delete(
                "mlflow/model-versions/delete-tag",
                &json!({"name": name, "version": version, "key": key}),
            ),
            Change::SetAlias { alias } => client.post(
                "mlflow/registered-models/alias",
                &json!({"name": name, "alias": alias, "version": version}),
            ),
            Change::DeleteAlias { alias } => {
                client.delete("mlflow/registered-models/alias", &json!({"name": name, "alias": alias}))
            }
        }?;
    }
    Ok(())
}
