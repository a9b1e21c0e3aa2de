//! What MLflow knows of a model version: the run that made it, with parameters, metrics, tags and commit.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use weighlock_protocol::manifest::contract::{
    MLFLOW_COMMIT_TAG, MLFLOW_ENTRIES_MAX, MLFLOW_KEY_CHARS_MAX, MLFLOW_VALUE_CHARS_MAX, MlflowOrigin,
};

use super::{Client, ModelUri, Pick};
use crate::error::{Error, Result};

/// MLflow's own tags that say something about a model; the others are about its web page.
const OWN_TAGS: [&str; 7] = [
    MLFLOW_COMMIT_TAG,
    "mlflow.source.git.branch",
    "mlflow.source.git.repoURL",
    "mlflow.source.name",
    "mlflow.source.type",
    "mlflow.runName",
    "mlflow.user",
];
/// Tags that `weighlock mlflow push` writes: what is said here is no origin.
pub(super) const OUR_TAGS: &str = "weighlock.";

/// A model version and what is known of it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) version: ModelVersion,
    pub(crate) origin: MlflowOrigin,
    /// What was left out, and why.
    pub(crate) warnings: Vec<String>,
}

/// As MLflow answers it (`model-versions/get`).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ModelVersion {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) source: String,
    pub(crate) run_id: String,
    pub(crate) model_id: String,
    pub(crate) status: String,
    pub(crate) tags: Vec<Entry>,
    pub(crate) aliases: Vec<String>,
}

/// A tag, parameter or metric.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) value: Value,
}

#[derive(Deserialize)]
struct VersionAnswer {
    model_version: ModelVersion,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Data {
    params: Vec<Entry>,
    metrics: Vec<Entry>,
    tags: Vec<Entry>,
}

#[derive(Deserialize)]
struct RunAnswer {
    run: Run,
}

#[derive(Deserialize)]
struct Run {
    #[serde(default)]
    data: Data,
}

#[derive(Deserialize)]
struct LoggedAnswer {
    model: Logged,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Logged {
    info: LoggedInfo,
    data: Data,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LoggedInfo {
    source_run_id: String,
    tags: Vec<Entry>,
}

/// Asks for a model version by number or alias.
///
/// # Errors
/// There is none; it is not ready; the server does not answer as it should.
pub(crate) fn version(client: &Client, uri: &ModelUri) -> Result<ModelVersion> {
    let answer: VersionAnswer = match &uri.pick {
        Pick::Version(version) => {
            let version = version.to_string();
            client.get("mlflow/model-versions/get", &[("name", &uri.name), ("version", &version)])?
        }
        Pick::Alias(alias) => {
            client.get("mlflow/registered-models/alias", &[("name", &uri.name), ("alias", alias)])?
        }
    };
    let found = answer.model_version;
    if !found.status.is_empty() && found.status != "READY" {
        return Err(Error::unavailable(format!("{uri} is not ready: MLflow says {}", found.status))
            .hint("try again once it is"));
    }
    Ok(found)
}

/// Asks for a model version and all that is known of where it came from.
///
/// # Errors
/// As [`version`]; also when its run is gone.
pub(crate) fn find(client: &Client, uri: &ModelUri) -> Result<Found> {
    let version = version(client, uri)?;
    let (mut run_id, mut model) = (version.run_id.clone(), Data::default());
    // MLflow 3 keeps what was logged with a model beside its run.
    if !version.model_id.is_empty() {
        let answer: LoggedAnswer = client.get(&format!("mlflow/logged-models/{}", version.model_id), &[])?;
        model = answer.model.data;
        model.tags.extend(answer.model.info.tags);
        if run_id.is_empty() {
            run_id = answer.model.info.source_run_id;
        }
    }
    let run = if run_id.is_empty() {
        Data::default()
    } else {
        let answer: RunAnswer = client.get("mlflow/runs/get", &[("run_id", &run_id)])?;
        answer.run.data
    };
    let mut warnings = Vec::new();
    let is_told =
        |key: &str| !key.starts_with(OUR_TAGS) && (!key.starts_with("mlflow.") || OWN_TAGS.contains(&key));
    // What the version says beats the model, which beats the run.
    let tags = [&run.tags, &model.tags, &version.tags];
    let mut tags = bounded("tags", tags.into_iter().flatten().filter(|tag| is_told(&tag.key)), &mut warnings);
    for (_, value) in tags.iter_mut().filter(|(key, _)| OWN_TAGS.contains(&key.as_str())) {
        *value = public(value);
    }
    let mut aliases = version.aliases.clone();
    aliases.sort();
    aliases.truncate(MLFLOW_ENTRIES_MAX);
    let origin = MlflowOrigin {
        server: client.server.base.clone(),
        model: version.name.clone(),
        version: version.version.clone(),
        source: public(&version.source),
        run: Some(run_id).filter(|run| !run.is_empty()),
        aliases,
        params: bounded("parameters", [&run.params, &model.params].into_iter().flatten(), &mut warnings),
        metrics: bounded("metrics", [&run.metrics, &model.metrics].into_iter().flatten(), &mut warnings),
        tags,
    };
    origin.check().map_err(|what| Error::invalid(format!("{uri}: {what}")))?;
    Ok(Found { version, origin, warnings })
}

/// An address without what lets its bearer in: a contract goes to every host and stays. Other texts as they are.
fn public(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    let path =
        if scheme.starts_with("http") { path.split(['?', '#']).next().unwrap_or_default() } else { path };
    format!("{scheme}://{host}{path}")
}

/// The entries that fit a contract, later ones in place of earlier ones of the same key.
fn bounded<'a>(
    what: &str,
    entries: impl Iterator<Item = &'a Entry>,
    warnings: &mut Vec<String>,
) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut long = 0;
    for entry in entries {
        let value = match &entry.value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let fits = entry.key.chars().count() <= MLFLOW_KEY_CHARS_MAX
            && value.chars().count() <= MLFLOW_VALUE_CHARS_MAX;
        if !fits || entry.key.is_empty() {
            long += 1;
            continue;
        }
        all.insert(entry.key.clone(), value);
    }
    if long > 0 {
        warnings.push(format!("{long} {what} of MLflow are longer than a contract takes and were left out"));
    }
    let over = all.len().saturating_sub(MLFLOW_ENTRIES_MAX);
    if over > 0 {
        warnings.push(format!("{over} of {} {what} of MLflow were left out", all.len()));
        while all.len() > MLFLOW_ENTRIES_MAX {
            all.pop_last();
        }
    }
    all
}

#[cfg(test)]
mod tests {
    #[test]
    fn addresses_lose_what_lets_their_bearer_in() {
        for (text, public) in [
            ("https://ci:s3cret@git.example/acme/bot.git", "https://git.example/acme/bot.git"),
            ("https://store.example/a/b?sig=abc&x=1#top", "https://store.example/a/b"),
            ("https://u:p@store.example?sig=abc", "https://store.example"),
            ("s3://key@bucket/path?versionId=1", "s3://bucket/path?versionId=1"),
            ("models:/bot/3", "models:/bot/3"),
            ("train.py", "train.py"),
            ("", ""),
        ] {
            assert_eq!(super::public(text), public);
        }
    }
}
