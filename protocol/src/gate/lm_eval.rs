//! Results of lm-evaluation-harness (0.4.x, its results JSON and sample logs) as a report.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::json::{self, refuse, shown};
use super::ours::{self, of_metric};
use super::report::{METRICS_MAX, REPORT_BYTES_MAX, REPORT_VERSION};
use super::{Harness, Metric, Report, ReportError, Runtime, Samples, Scale};
use crate::id::Sha256;
use crate::time::UnixTime;

mod pool;
mod samples;
mod suite;

use samples::Statistic;

pub use samples::{LM_EVAL_LINE_MAX, SAMPLE_FILES_MAX};

/// The harness's name in reports.
pub const HARNESS_NAME: &str = "lm-evaluation-harness";

/// Whether a file looks like the harness's results.
pub fn is_lm_eval(bytes: &[u8]) -> bool {
    let parsed = json::parse(bytes, "the results", REPORT_BYTES_MAX);
    matches!(parsed, Ok(Value::Object(top)) if has_form(&top))
}

/// Reads `results_<time>.json` and any of the `samples_<task>_<time>.jsonl` of the same run, each with its file name.
///
/// Metrics are named `task.metric`, with `@filter` behind it unless the filter is `none`; groups count as tasks. The
/// suite is digested: equal for two models, other for another task version, data set, prompt, scoring
/// or number of examples. Samples are named by position, document, target and prompt (the prompt is left out where a
/// chat template was applied, as that belongs to the model), so two models' samples pair. A group whose value is a
/// mean over the samples of its tasks gets those samples. Log-likelihoods become negative log-likelihoods per word or
/// byte, with words or bytes as weights.
///
/// What the harness does not compute a number for (an array, an object) is no metric. `metadata` of a task is not in
/// the suite digest, as the harness puts the model's arguments there.
///
/// # Errors
/// Not such results, a value or standard error that is no finite number (named), samples of another task or run (file
/// named), or samples that do not give the results' values.
pub fn read(
    results: &[u8],
    samples: &[(String, Vec<u8>)],
) -> Result<(Report, BTreeMap<String, Samples>), ReportError> {
    let Value::Object(top) = json::parse(results, "the results", REPORT_BYTES_MAX)? else {
        return refuse("the results are no JSON object; name the harness's results_<time>.json".into());
    };
    let figures = figures(&top)?;
    if !has_form(&top) {
        // Another tool's file may hold `results` too; what such a value means is not known.
        return refuse(
            "the results have neither `lm_eval_version` nor `configs` and `versions`; \
             name the harness's results_<time>.json"
                .into(),
        );
    }
    let mut report = Report {
        version: REPORT_VERSION,
        artifact: None,
        suite: Some(suite::digest(&top)),
        harness: Harness {
            name: HARNESS_NAME.into(),
            version: text(&top, "lm_eval_version"),
            git_hash: Some(text(&top, "git_hash")).filter(|hash| !hash.is_empty()),
        },
        runtime: runtime(&top),
        host: None,
        seed: seeds(&top),
        time: ended(&top),
        chat_template_sha256: chat_template(&top)?,
        metrics: BTreeMap::new(),
    };
    let limited = at(&top, &["config", "limit"]).is_some_and(|limit| !limit.is_null());
    if let Some(figure) = figures.iter().find(|figure| limited && counts(&top, figure, true).is_none()) {
        // Releases before `n-samples` do not say how many documents were left out.
        return Err(of_metric(&figure.name, "the run was limited (config.limit); run it without --limit"));
    }
    let mut bound = samples::read(&top, &figures, samples)?;
    pool::add_groups(&top, &figures, &mut bound);
    for figure in &figures {
        let (metric, name) = (figure.metric(&top, bound.get(&figure.name))?, figure.name.clone());
        if report.metrics.insert(name, metric).is_some() {
            return Err(of_metric(&figure.name, "two tasks or filters make the same name"));
        }
    }
    ours::attach(&mut report, &bound)?;
    ours::check(&report)?;
    Ok((report, bound))
}

/// The harness's version stands there, or else all that tells its results from another tool's.
fn has_form(top: &Map<String, Value>) -> bool {
    let has = |key: &str| top.get(key).is_some_and(Value::is_object);
    has("results") && (top.contains_key("lm_eval_version") || (has("configs") && has("versions")))
}

/// One value of the results and where it stands.
struct Figure {
    /// As the report calls it.
    name: String,
    task: String,
    metric: String,
    filter: String,
    value: f64,
    stderr: Option<f64>,
}

impl Figure {
    fn metric(&self, top: &Map<String, Value>, samples: Option<&Samples>) -> Result<Metric, ReportError> {
        let mut counts = counts(top, self, samples.is_some());
        if let (Some(samples), Some((n, total))) = (samples, &mut counts) {
            // A task may leave a metric out for some documents; that is no limit.
            let unmeasured = n.checked_sub(samples.len() as u64);
            let unmeasured = unmeasured
                .ok_or_else(|| of_metric(&self.name, &format!("more samples than its {n} documents")))?;
            (*n, *total) = (*n - unmeasured, *total - unmeasured.min(*total));
        }
        let statistic = samples::statistic(top, &self.task, &self.metric);
        Ok(Metric {
            value: self.value,
            stderr: self.stderr,
            n: counts.map(|(n, _)| n),
            n_total: counts.map(|(_, total)| total),
            higher_is_better: at(top, &["higher_is_better", &self.task, &self.metric])
                .and_then(Value::as_bool),
            scale: match statistic {
                // Whether it is a mean is known only where samples showed it.
                Statistic::Unknown if samples.is_none() => Scale::Other,
                _ if is_group(top, &self.task) && samples.is_none() => Scale::Other,
                statistic => statistic.scale(),
            },
            task_version: match at(top, &["versions", &self.task]) {
                Some(Value::String(version)) => version.clone(),
                Some(Value::Number(version)) => version.to_string(),
                _ => String::new(),
            },
            n_shot: at(top, &["n-shot", &self.task]).and_then(Value::as_u64),
            samples: None,
        })
    }
}

fn figures(top: &Map<String, Value>) -> Result<Vec<Figure>, ReportError> {
    let Some(results) = top.get("results").and_then(Value::as_object) else {
        return refuse("the results have no object `results`; name the harness's results_<time>.json".into());
    };
    let groups = top.get("groups").and_then(Value::as_object);
    let groups = groups.into_iter().flatten().filter(|(name, _)| !results.contains_key(*name));
    let mut figures = Vec::new();
    for (task, entries) in results.iter().chain(groups) {
        let Some(entries) = entries.as_object() else {
            return refuse(format!("`results` of task {} is no object; run the harness again", shown(task)));
        };
        for (key, value) in entries {
            // `acc,none`; names and aliases of the task have no comma.
            let Some((metric, filter)) = key.split_once(',') else { continue };
            // `bypass` is 999 where nothing is measured.
            if metric.ends_with("_stderr") || metric == "bypass" {
                continue;
            }
            if value.is_null() || value.is_array() || value.is_object() {
                continue;
            }
            let name = match filter {
                "none" => format!("{task}.{metric}"),
                filter => format!("{task}.{metric}@{filter}"),
            };
            let finite = |what: &str, value: &Value| {
                let figure = json::number(value);
                figure.map_err(|is| of_metric(&name, &format!("its {what} is {is}, not a finite number")))
            };
            let stderr = match entries.get(&format!("{metric}_stderr,{filter}")) {
                None | Some(Value::Null) => None,
                Some(Value::String(none)) if none == "N/A" => None,
                Some(stderr) => Some(finite("stderr", stderr)?),
            };
            let value = finite("value", value)?;
            let (task, metric, filter) = (task.clone(), metric.to_owned(), filter.to_owned());
            figures.push(Figure { name, task, metric, filter, value, stderr });
            if figures.len() > METRICS_MAX {
                return refuse(format!("the results have more than the {METRICS_MAX} metrics accepted"));
            }
        }
    }
    if figures.is_empty() {
        return refuse("the results have no metric; run the harness with a task that has some".into());
    }
    Ok(figures)
}

/// Documents measured and documents that there are, where the results say both.
fn counts(top: &Map<String, Value>, figure: &Figure, is_logged: bool) -> Option<(u64, u64)> {
    let of_task = |task: &str| {
        let count = |which| at(top, &["n-samples", task, which]).and_then(Value::as_u64);
        let effective = count("effective")?;
        // The harness counts all documents there when it was told which ones to run (`--samples`), and those only here.
        // Logs tell by themselves.
        let measured = at(top, &["results", task, "sample_len"]).and_then(Value::as_u64);
        let measured = measured.filter(|_| !is_logged).unwrap_or(effective);
        Some((effective.min(measured), count("original")?))
    };
    if !is_group(top, &figure.task) {
        return of_task(&figure.task);
    }
    let (mut n, mut total) = (0u64, 0u64);
    for task in leaves(top, &figure.task) {
        let (effective, original) = of_task(task)?;
        (n, total) = (n.checked_add(effective)?, total.checked_add(original)?);
    }
    // Tasks without this metric are not in the group's value.
    let key = format!("{},{}", figure.metric, figure.filter);
    let own = at(top, &["results", &figure.task, "sample_count", &key]).and_then(Value::as_u64).unwrap_or(n);
    Some((own, total.checked_sub(n)?.checked_add(own)?))
}

fn is_group(top: &Map<String, Value>, task: &str) -> bool {
    !leaves(top, task).is_empty()
}

/// The tasks below a group, through groups in it, each once; none for a task.
fn leaves<'a>(top: &'a Map<String, Value>, group: &'a str) -> BTreeSet<&'a str> {
    let children = |name: &str| at(top, &["group_subtasks", name]).and_then(Value::as_array);
    let (mut found, mut seen, mut open) = (BTreeSet::new(), BTreeSet::from([group]), vec![group]);
    while let Some(name) = open.pop() {
        let below: Vec<&str> = children(name).into_iter().flatten().filter_map(Value::as_str).collect();
        if below.is_empty() && name != group {
            found.insert(name);
        }
        open.extend(below.into_iter().filter(|name| seen.insert(name)));
    }
    found
}

fn runtime(top: &Map<String, Value>) -> Runtime {
    // A model class of the caller's own is known by its name alone.
    let source = match text(top, "model_source") {
        source if source == "CUSTOM" => {
            at(top, &["config", "model"]).and_then(Value::as_str).unwrap_or_default().into()
        }
        source => source,
    };
    let transformers = ["hf", "hf-auto", "huggingface", "hf-multimodal"].contains(&source.as_str());
    let version = Some(text(top, "transformers_version")).filter(|version| transformers && version != "N/A");
    let kernels = match at(top, &["config", "model_args"]) {
        Some(Value::Object(arguments)) => text(arguments, "attn_implementation"),
        Some(Value::String(arguments)) => {
            let mut pairs = arguments.split(',').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == "attn_implementation").map_or(String::new(), |(_, v)| v.to_owned())
        }
        _ => String::new(),
    };
    Runtime {
        name: if transformers { "transformers".into() } else { source },
        version: version.unwrap_or_default(),
        kernels,
    }
}

fn seeds(top: &Map<String, Value>) -> Option<String> {
    let seed = |name: &str| {
        let seed = at(top, &["config", &format!("{name}_seed")])?.as_i64()?;
        Some(format!("{name}={seed}"))
    };
    let seeds: Vec<String> = ["random", "numpy", "torch", "fewshot"].into_iter().filter_map(seed).collect();
    (!seeds.is_empty()).then(|| seeds.join(","))
}

/// `date` is when it began.
fn ended(top: &Map<String, Value>) -> Option<UnixTime> {
    let began = top.get("date")?.as_f64()?;
    let took = text(top, "total_evaluation_time_seconds").parse::<f64>().ok().filter(|took| took.is_finite());
    let end = began + took.unwrap_or(0.0);
    // The cast saturates; what is no time is left out.
    (end.is_finite() && end >= 1.0).then_some(UnixTime(end as u64))
}

fn chat_template(top: &Map<String, Value>) -> Result<Option<Sha256>, ReportError> {
    let sha = text(top, "chat_template_sha");
    if sha.is_empty() {
        return Ok(None);
    }
    let sha = format!("sha256:{sha}").parse();
    sha.map(Some).map_err(|error| ReportError(format!("`chat_template_sha` of the results: {error}")))
}

/// What stands under keys inside keys.
fn at<'a>(top: &'a Map<String, Value>, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(top.get(*first)?, |value, key| value.get(*key))
}

/// The text under a key; empty if there is none.
fn text(object: &Map<String, Value>, key: &str) -> String {
    object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
