//! Our own report: JSON that a five-line script can write, and its samples as JSON Lines.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::json::{self, refuse, shown};
use super::report::{METRICS_MAX, REPORT_BYTES_MAX, REPORT_TEXT_MAX, REPORT_VERSION};
use super::samples::{SAMPLES_BYTES_MAX, SAMPLES_MAX};
use super::{Metric, Report, ReportError, Sample, Samples, Scale};

/// Longest line of a samples file of ours, in bytes: two ids and two numbers, escaped.
pub const SAMPLE_LINE_MAX: usize = 16 << 10;
/// How far a value may lie from what its samples give, relative to the larger of both. Harnesses add in other orders.
const RELATIVE_MAX: f64 = 1e-6;
/// The same where both are near zero.
const ABSOLUTE_MAX: f64 = 1e-9;

/// Reads a [`Report`] in its JSON form, or in a short one: `version` and `harness` may be left out, a metric may be a
/// bare number, and `samples` of a metric may be an array of [`Sample`]s instead of their digest:
/// `{"metrics": {"eval_loss": 2.31, "acc": {"value": 0.5, "samples": [{"id": "a", "value": 1}, ...]}}}`.
///
/// # Errors
/// Larger than [`REPORT_BYTES_MAX`], not JSON, an unknown or repeated key, a figure that is no finite number, samples
/// that do not give their metric's value, or anything that [`check`] refuses.
pub fn read(bytes: &[u8]) -> Result<(Report, BTreeMap<String, Samples>), ReportError> {
    let Value::Object(mut top) = json::parse(bytes, "the report", REPORT_BYTES_MAX)? else {
        return refuse("the report is no JSON object; write {\"metrics\": {\"eval_loss\": 2.31}}".into());
    };
    let Some(Value::Object(entries)) = top.insert("metrics".into(), json!({})) else {
        return refuse(
            "the report has no object `metrics`; write {\"metrics\": {\"eval_loss\": 2.31}}".into(),
        );
    };
    top.entry("version").or_insert(REPORT_VERSION.into());
    top.entry("harness").or_insert(json!({"name": "custom"}));
    let mut report: Report = fields(top, "the report")?;
    let mut samples = BTreeMap::new();
    for (name, value) in entries {
        let (metric, inline) = metric(&name, value)?;
        if let Some(inline) = inline {
            samples.insert(name.clone(), inline);
        }
        report.metrics.insert(name, metric);
    }
    attach(&mut report, &samples)?;
    check(&report)?;
    Ok((report, samples))
}

/// Reads samples in JSON Lines, `{"metric": ..., "id": ..., "cluster": ..., "value": ..., "weight": ...}` on each;
/// `cluster` and `weight` may be left out. [`attach`] binds them to a report.
///
/// # Errors
/// Larger than [`SAMPLES_BYTES_MAX`], a line that is no such object, named by its number, or what [`Samples::new`]
/// refuses.
pub fn read_samples(bytes: &[u8]) -> Result<BTreeMap<String, Samples>, ReportError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        metric: String,
        id: String,
        #[serde(default)]
        cluster: String,
        value: Value,
        #[serde(default)]
        weight: Option<Value>,
    }
    if bytes.len() as u64 > SAMPLES_BYTES_MAX {
        return refuse(format!("the samples have more than the {SAMPLES_BYTES_MAX} bytes accepted"));
    }
    let mut found: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    for (number, line) in json::lines(bytes) {
        let place = || format!("line {number} of the samples");
        if line.len() > SAMPLE_LINE_MAX {
            return refuse(format!("{} is longer than {SAMPLE_LINE_MAX} bytes", place()));
        }
        let line: Line = json::from_python(line)
            .map_err(|error| ReportError(format!("{} is not a sample: {}", place(), json::reason(&error))))?;
        let figure = |value: &Value| {
            json::number(value).map_err(|what| {
                let of = shown(&line.metric);
                ReportError(format!("{}: a sample of metric {of} has {what}, not a finite number", place()))
            })
        };
        let value = figure(&line.value)?;
        let weight = line.weight.as_ref().map_or(Ok(1.0), figure)?;
        if !found.contains_key(&line.metric) && found.len() == METRICS_MAX {
            return refuse(format!("the samples are of more than {METRICS_MAX} metrics"));
        }
        let of = found.entry(line.metric).or_default();
        if of.len() == SAMPLES_MAX {
            return refuse(format!(
                "{}: more than the {SAMPLES_MAX} samples accepted of one metric",
                place()
            ));
        }
        of.push(Sample { id: line.id, cluster: line.cluster, value, weight });
    }
    let checked = found.into_iter().map(|(name, list)| {
        let samples = Samples::new(list).map_err(|why| of_metric(&name, &why))?;
        Ok((name, samples))
    });
    checked.collect()
}

/// Binds samples to the metrics of a report: sets `n` where the report does not say it, and the digest of the samples.
///
/// # Errors
/// Samples of a metric that the report does not have, of one whose value does not come from samples, of another
/// number than its `n`, of another digest than its own, or that do not give its value.
pub fn attach(report: &mut Report, samples: &BTreeMap<String, Samples>) -> Result<(), ReportError> {
    for (name, samples) in samples {
        let refused = |why: String| Err(of_metric(name, &format!("samples do not match the results: {why}")));
        let Some(metric) = report.metrics.get_mut(name) else {
            return refused("there is no such metric in the report".into());
        };
        let len = samples.len() as u64;
        if metric.n.is_some_and(|n| n != len) {
            return refused(format!("n is {}, but there are {len} samples", metric.n.unwrap_or_default()));
        }
        if metric.scale == Scale::Other {
            return refused("its scale is `other`, which no samples give".into());
        }
        if !agrees(metric.scale, metric.value, samples) {
            let given = value_of(metric.scale, samples).unwrap_or(f64::NAN);
            return refused(format!("its value is {}, but its {len} samples give {given}", metric.value));
        }
        let digest = samples.digest();
        if metric.samples.is_some_and(|named| named != digest) {
            return refused(format!(
                "the report names {}, these are {digest}",
                metric.samples.unwrap_or(digest)
            ));
        }
        metric.n = Some(len);
        metric.samples = Some(digest);
    }
    Ok(())
}

/// Whether a report can be evidence: its version, names, numbers and sizes. That a limited run (`n < n_total`) is not
/// enough is for the gate to say.
///
/// # Errors
/// What is wrong, with the name of the metric or field.
pub fn check(report: &Report) -> Result<(), ReportError> {
    if report.version != REPORT_VERSION {
        let found = report.version;
        return refuse(format!(
            "the report has version {found}, this program reads {REPORT_VERSION}; update it"
        ));
    }
    if report.metrics.is_empty() || report.metrics.len() > METRICS_MAX {
        let count = report.metrics.len();
        return refuse(format!("the report has {count} metrics; it takes 1 to {METRICS_MAX}"));
    }
    let (harness, runtime) = (&report.harness, &report.runtime);
    let optional = |text: &'_ Option<String>| text.clone().unwrap_or_default();
    let mut texts = vec![
        ("harness.name", harness.name.clone()),
        ("harness.version", harness.version.clone()),
        ("harness.git_hash", optional(&harness.git_hash)),
        ("runtime.name", runtime.name.clone()),
        ("runtime.version", runtime.version.clone()),
        ("runtime.kernels", runtime.kernels.clone()),
        ("seed", optional(&report.seed)),
    ];
    if let Some(host) = &report.host {
        texts.extend([("host.hardware", host.hardware.clone()), ("host.model", host.model.clone())]);
    }
    for (name, text) in texts {
        if text.len() > REPORT_TEXT_MAX || text.chars().any(char::is_control) {
            return refuse(format!(
                "`{name}` of the report is longer than {REPORT_TEXT_MAX} bytes or not one line"
            ));
        }
    }
    if harness.name.is_empty() {
        return refuse("`harness.name` of the report is empty; leave `harness` out or name it".into());
    }
    report.metrics.iter().try_for_each(|(name, metric)| check_metric(name, metric))
}

/// The value that samples give on a scale; `None` without samples or on [`Scale::Other`].
pub(super) fn value_of(scale: Scale, samples: &Samples) -> Option<f64> {
    let mean = samples.mean()?;
    match scale {
        Scale::Mean => Some(mean),
        Scale::ExpMean => Some(mean.exp()),
        Scale::MeanOverLn2 => Some(mean / std::f64::consts::LN_2),
        Scale::Other => None,
    }
}

/// Whether samples give a value, but for rounding.
pub(super) fn agrees(scale: Scale, value: f64, samples: &Samples) -> bool {
    value_of(scale, samples).is_some_and(|given| {
        (given - value).abs() <= (RELATIVE_MAX * given.abs().max(value.abs())).max(ABSOLUTE_MAX)
    })
}

pub(super) fn of_metric(name: &str, why: &str) -> ReportError {
    ReportError(format!("metric {}: {why}", shown(name)))
}

fn check_metric(name: &str, metric: &Metric) -> Result<(), ReportError> {
    let refused = |why: String| Err(of_metric(name, &why));
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.@,/+-".contains(c);
    if name.is_empty() || name.len() > REPORT_TEXT_MAX || !name.chars().all(plain) {
        return refused(format!(
            "the name is empty, longer than {REPORT_TEXT_MAX} bytes, or has other characters than A-Z a-z 0-9 _ . @ , / + -"
        ));
    }
    if !metric.value.is_finite() {
        return refused(format!("its value is {}, not a finite number", metric.value));
    }
    if metric.stderr.is_some_and(|stderr| !(stderr.is_finite() && stderr >= 0.0)) {
        let stderr = metric.stderr.unwrap_or_default();
        return refused(format!(
            "its stderr is {stderr}, not a number from 0 up; leave it out if there is none"
        ));
    }
    if metric.n == Some(0) {
        return refused("its n is 0: nothing was measured".into());
    }
    if let (Some(n), Some(total)) = (metric.n, metric.n_total)
        && n > total
    {
        return refused(format!("its n is {n}, more than its n_total of {total}"));
    }
    if metric.task_version.len() > REPORT_TEXT_MAX || metric.task_version.chars().any(char::is_control) {
        return refused(format!("its task_version is longer than {REPORT_TEXT_MAX} bytes or not one line"));
    }
    Ok(())
}

/// One entry of `metrics`: a number, or an object, with its samples where they stand in it.
fn metric(name: &str, value: Value) -> Result<(Metric, Option<Samples>), ReportError> {
    let mut object = match value {
        Value::Object(object) => object,
        value => Map::from_iter([("value".to_owned(), value)]),
    };
    for key in ["value", "stderr"] {
        match object.get(key).map(json::number) {
            Some(Ok(_)) => {}
            None if key == "stderr" => {}
            None => return Err(of_metric(name, "it has no `value`")),
            Some(Err(what)) => {
                let hint = if key == "stderr" { "; leave it out if there is none" } else { "" };
                return Err(of_metric(name, &format!("its {key} is {what}, not a finite number{hint}")));
            }
        }
    }
    let inline = match object.remove("samples") {
        Some(Value::Array(list)) => Some(inline_samples(name, list)?),
        Some(digest) => {
            object.insert("samples".into(), digest);
            None
        }
        None => None,
    };
    Ok((fields(object, &format!("metric {}", shown(name)))?, inline))
}

fn inline_samples(name: &str, list: Vec<Value>) -> Result<Samples, ReportError> {
    let mut samples = Vec::with_capacity(list.len());
    for (at, value) in list.into_iter().enumerate() {
        let place = format!("metric {}: sample {}", shown(name), at + 1);
        if let Some(Err(what)) = value.get("value").map(json::number) {
            return refuse(format!("{place}: its value is {what}, not a finite number"));
        }
        let Value::Object(object) = value else {
            return refuse(format!("{place} is no object; write {{\"id\": ..., \"value\": ...}}"));
        };
        samples.push(fields(object, &place)?);
    }
    Samples::new(samples).map_err(|why| of_metric(name, &why))
}

/// Reads a type whose every field is known from an object.
fn fields<T: for<'de> Deserialize<'de>>(object: Map<String, Value>, what: &str) -> Result<T, ReportError> {
    serde_json::from_value(Value::Object(object)).map_err(|error| ReportError(format!("{what}: {error}")))
}

#[cfg(test)]
mod tests;
