//! The harness's sample logs: what each document scored, bound to the results of the same run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};
use sha2::Digest as _;

use super::{Figure, at, text};
use crate::gate::json::{self, refuse, shown};
use crate::gate::ours::{agrees, of_metric};
use crate::gate::samples::{SAMPLES_BYTES_MAX, SAMPLES_MAX};
use crate::gate::{ReportError, Sample, Samples, Scale};

/// Longest line of a sample log, in bytes: it holds document, prompts and answers.
pub const LM_EVAL_LINE_MAX: usize = 64 << 20;
/// Most sample logs of one run.
pub const SAMPLE_FILES_MAX: usize = 10_000;
/// Bytes of a hash that a sample's name and document keep, in hex.
const NAME_HEX_LEN: usize = 32;

/// How the harness makes a metric's value from its documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Statistic {
    /// The mean of one number per document.
    Mean,
    /// `exp(-mean)` of one log-likelihood per document.
    Perplexity,
    /// `exp(-Σ ll / Σ count)` of log-likelihood and count per document.
    WeightedPerplexity,
    /// `-Σ ll / Σ count / ln 2` of the same.
    BitsPerByte,
    /// A function of the task's own; it is a mean if the samples show it.
    Unknown,
    /// Not a function of one number per document.
    Other,
}

impl Statistic {
    pub(super) fn scale(self) -> Scale {
        match self {
            Self::Mean | Self::Unknown => Scale::Mean,
            Self::Perplexity | Self::WeightedPerplexity => Scale::ExpMean,
            Self::BitsPerByte => Scale::MeanOverLn2,
            Self::Other => Scale::Other,
        }
    }

    /// Value and weight of one document; `None` if it does not count, what is wrong if it is no such number.
    fn sample(self, value: &Value) -> Result<Option<(f64, f64)>, String> {
        match self {
            Self::Mean | Self::Unknown => match value {
                Value::Bool(truth) => Ok(Some((f64::from(u8::from(*truth)), 1.0))),
                value => Ok(Some((json::number(value)?, 1.0))),
            },
            // Subtracted, so that -0 does not arise.
            Self::Perplexity => Ok(Some((0.0 - json::number(value)?, 1.0))),
            Self::WeightedPerplexity | Self::BitsPerByte => {
                let Some([log, count]) = value.as_array().map(Vec::as_slice) else {
                    return Err("not a pair of log-likelihood and count".into());
                };
                let (log, count) = (json::number(log)?, json::number(count)?);
                match count > 0.0 {
                    true => Ok(Some(((0.0 - log) / count, count))),
                    // An empty document.
                    false if log == 0.0 && count == 0.0 => Ok(None),
                    false => Err(format!("{log} over a count of {count}")),
                }
            }
            Self::Other => Ok(None),
        }
    }
}

/// The statistic that a task names for a metric, else the one that the harness registers for the metric's name.
pub(super) fn statistic(top: &Map<String, Value>, task: &str, metric: &str) -> Statistic {
    let list = at(top, &["configs", task, "metric_list"]).and_then(Value::as_array);
    let entry = list.into_iter().flatten().find(|entry| entry["metric"] == metric);
    match entry.and_then(|entry| entry["aggregation"].as_str()).unwrap_or_default() {
        "mean" => Statistic::Mean,
        "perplexity" => Statistic::Perplexity,
        "weighted_perplexity" => Statistic::WeightedPerplexity,
        "bits_per_byte" => Statistic::BitsPerByte,
        "median" | "f1" | "matthews_corrcoef" | "bleu" | "chrf" | "chrf++" | "ter" | "brier_score"
        | "bypass" => Statistic::Other,
        "" => match metric {
            "acc" | "acc_norm" | "acc_bytes" | "acc_mutual_info" | "exact_match" => Statistic::Mean,
            "perplexity" => Statistic::Perplexity,
            "word_perplexity" | "byte_perplexity" => Statistic::WeightedPerplexity,
            "bits_per_byte" => Statistic::BitsPerByte,
            "f1" | "mcc" | "bleu" | "chrf" | "chrf++" | "ter" | "brier_score" | "acc_all" | "likelihood" => {
                Statistic::Other
            }
            _ => Statistic::Unknown,
        },
        _ => Statistic::Unknown,
    }
}

/// The samples of every figure that comes from some, by the figure's name.
pub(super) fn read(
    top: &Map<String, Value>,
    figures: &[Figure],
    files: &[(String, Vec<u8>)],
) -> Result<BTreeMap<String, Samples>, ReportError> {
    if files.len() > SAMPLE_FILES_MAX {
        return refuse(format!("{} sample logs are more than {SAMPLE_FILES_MAX}", files.len()));
    }
    let mut bound = BTreeMap::new();
    let (mut run, mut tasks) = (None, BTreeSet::new());
    for (file, bytes) in files {
        let (task, time) = task_and_time(file)?;
        let figures: Vec<&Figure> = figures.iter().filter(|figure| figure.task == task).collect();
        if figures.is_empty() {
            return refuse(format!(
                "{} is of task {}, which the results do not have",
                shown(file),
                shown(task)
            ));
        }
        let first = *run.get_or_insert(time);
        if first != time {
            return refuse(format!("{} is of another run than the sample logs of {first}", shown(file)));
        }
        if !tasks.insert(task) {
            return refuse(format!("{} is a second sample log of task {}", shown(file), shown(task)));
        }
        let log = Log { top, task, file, statistics: statistics(top, &figures) };
        bound.extend(log.read(bytes, &figures)?);
    }
    Ok(bound)
}

fn statistics<'a>(top: &Map<String, Value>, figures: &[&'a Figure]) -> BTreeMap<&'a str, Statistic> {
    figures.iter().map(|f| (f.metric.as_str(), statistic(top, &f.task, &f.metric))).collect()
}

/// `samples_<task>_<time>.jsonl`; there is no `_` in the time, but there is in tasks.
fn task_and_time(file: &str) -> Result<(&str, &str), ReportError> {
    let name = file.rsplit(['/', '\\']).next().unwrap_or(file);
    let inner = name.strip_prefix("samples_").and_then(|name| name.strip_suffix(".jsonl"));
    let parts = inner.and_then(|inner| inner.rsplit_once('_'));
    let parts =
        parts.filter(|(task, time)| !task.is_empty() && time.starts_with(|c: char| c.is_ascii_digit()));
    parts.ok_or_else(|| {
        ReportError(format!("{} is no sample log; name samples_<task>_<time>.jsonl as written", shown(file)))
    })
}

/// One sample log being read.
struct Log<'a> {
    top: &'a Map<String, Value>,
    task: &'a str,
    file: &'a str,
    /// Of each metric of the task.
    statistics: BTreeMap<&'a str, Statistic>,
}

/// The samples of one metric and filter; `None` once a document showed that they are no numbers.
type Found = BTreeMap<(String, String), Option<Vec<Sample>>>;

impl Log<'_> {
    fn read(&self, bytes: &[u8], figures: &[&Figure]) -> Result<BTreeMap<String, Samples>, ReportError> {
        if bytes.len() as u64 > SAMPLES_BYTES_MAX {
            return refuse(format!("{} has more than {SAMPLES_BYTES_MAX} bytes", shown(self.file)));
        }
        let filters: BTreeSet<&str> = figures.iter().map(|figure| figure.filter.as_str()).collect();
        let mut documents: BTreeMap<String, u64> = BTreeMap::new();
        let mut found = Found::new();
        let mut all = sha2::Sha256::new();
        for (number, line) in json::lines(bytes) {
            let place = || format!("line {number} of {}", shown(self.file));
            if line.len() > LM_EVAL_LINE_MAX {
                return refuse(format!("{} is longer than {LM_EVAL_LINE_MAX} bytes", place()));
            }
            let line =
                self.line(line).map_err(|why| ReportError(format!("{} is no sample: {why}", place())))?;
            let filter = match &line.filter {
                Some(filter) => filter.as_str(),
                // Older harnesses do not say it.
                None if filters.len() == 1 => filters.first().copied().unwrap_or_default(),
                None => return refuse(format!("{} names no filter; update the harness", place())),
            };
            if !filters.contains(filter) {
                return self.another_run(&format!("filter {} is not in them", shown(filter)));
            }
            for hash in [&line.doc_hash, &line.prompt_hash, &line.target_hash] {
                all.update(hash.as_bytes());
            }
            let seen = documents.entry(filter.to_owned()).or_default();
            *seen += 1;
            if *seen > SAMPLES_MAX as u64 {
                return refuse(format!("{}: more than {SAMPLES_MAX} samples of one filter", place()));
            }
            self.take(&line, filter, &mut found).map_err(|why| ReportError(format!("{}: {why}", place())))?;
        }
        self.check_run(all, &documents, &filters)?;
        self.bind(found, figures)
    }

    fn line(&self, line: &[u8]) -> Result<Line, String> {
        let parse = |bytes: &[u8]| {
            let mut json = serde_json::Deserializer::from_slice(bytes);
            let line = LineSeed(&self.statistics).deserialize(&mut json)?;
            json.end().map(|()| line)
        };
        let line = parse(line).or_else(|error| match json::quote_not_numbers(line) {
            Some(quoted) => parse(&quoted),
            None => Err(error),
        });
        let line = line.map_err(|error| json::reason(&error))?;
        let hash = |hash: &str| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        if line.id.is_empty()
            || ![&line.doc_hash, &line.prompt_hash, &line.target_hash].iter().all(|h| hash(h))
        {
            return Err("it has no doc_id or not the hashes of document, prompt and target".into());
        }
        Ok(line)
    }

    fn take(&self, line: &Line, filter: &str, found: &mut Found) -> Result<(), String> {
        let id = self.name(line);
        for (metric, value) in &line.values {
            let statistic = self.statistics.get(metric.as_str()).copied().unwrap_or(Statistic::Other);
            if statistic == Statistic::Other {
                continue;
            }
            let list = found.entry((metric.clone(), filter.to_owned())).or_insert_with(|| Some(Vec::new()));
            match statistic.sample(value) {
                Ok(None) => {}
                Ok(Some((value, weight))) => {
                    if let Some(list) = list {
                        let cluster = line.doc_hash[..NAME_HEX_LEN].to_owned();
                        list.push(Sample { id: id.clone(), cluster, value, weight });
                    }
                }
                Err(_) if statistic == Statistic::Unknown => *list = None,
                Err(what) => return Err(format!("its {} is {what}, not a finite number", shown(metric))),
            }
        }
        Ok(())
    }

    /// The same in runs of two models, and once per task: the harness numbers documents by their place in the split.
    fn name(&self, line: &Line) -> String {
        let mut hash = sha2::Sha256::new();
        hash.update(line.doc_hash.as_bytes());
        hash.update(line.target_hash.as_bytes());
        // The prompt is the model's own where its chat template made it.
        if text(self.top, "chat_template_sha").is_empty() {
            hash.update(line.prompt_hash.as_bytes());
        }
        let hash = data_encoding::HEXLOWER.encode(&hash.finalize());
        format!("{}-{}", line.id, &hash[..NAME_HEX_LEN])
    }

    /// The harness writes into the results a hash over the hashes of all samples, and how many documents there were.
    fn check_run(
        &self,
        all: sha2::Sha256,
        documents: &BTreeMap<String, u64>,
        filters: &BTreeSet<&str>,
    ) -> Result<(), ReportError> {
        if let Some(hashes) = self.top.get("task_hashes") {
            let all = data_encoding::HEXLOWER.encode(&all.finalize());
            if hashes.get(self.task).and_then(Value::as_str) != Some(&all) {
                return self.another_run("documents, prompts or targets differ from its `task_hashes`");
            }
        }
        if let Some(n) = at(self.top, &["n-samples", self.task, "effective"]).and_then(Value::as_u64) {
            for filter in filters {
                let lines = documents.get(*filter).copied().unwrap_or_default();
                if lines != n {
                    return self
                        .another_run(&format!("it has {lines} samples of filter {filter}, they have {n}"));
                }
            }
        }
        Ok(())
    }

    fn another_run<T>(&self, why: &str) -> Result<T, ReportError> {
        refuse(format!("{} is of another run than the results: {why}", shown(self.file)))
    }

    fn bind(&self, mut found: Found, figures: &[&Figure]) -> Result<BTreeMap<String, Samples>, ReportError> {
        let mut bound = BTreeMap::new();
        for figure in figures {
            let list = found.remove(&(figure.metric.clone(), figure.filter.clone())).flatten();
            let Some(list) = list.filter(|list| !list.is_empty()) else { continue };
            let samples = Samples::new(list).map_err(|why| of_metric(&figure.name, &why))?;
            let statistic = self.statistics.get(figure.metric.as_str()).copied().unwrap_or(Statistic::Other);
            if statistic == Statistic::Unknown && !agrees(Scale::Mean, figure.value, &samples) {
                continue;
            }
            bound.insert(figure.name.clone(), samples);
        }
        Ok(bound)
    }
}

/// What is taken from one line.
#[derive(Default)]
struct Line {
    id: String,
    doc_hash: String,
    prompt_hash: String,
    target_hash: String,
    filter: Option<String>,
    values: BTreeMap<String, Value>,
}

/// Reads one line; documents, prompts and answers are passed over.
struct LineSeed<'a>(&'a BTreeMap<&'a str, Statistic>);

impl<'de> DeserializeSeed<'de> for LineSeed<'_> {
    type Value = Line;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Line, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for LineSeed<'_> {
    type Value = Line;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with doc_id and metrics")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Line, A::Error> {
        let mut line = Line::default();
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "doc_id" => line.id = map.next_value::<Value>()?.to_string(),
                "doc_hash" => line.doc_hash = map.next_value()?,
                "prompt_hash" => line.prompt_hash = map.next_value()?,
                "target_hash" => line.target_hash = map.next_value()?,
                "filter" => line.filter = map.next_value()?,
                metric if self.0.contains_key(metric) => {
                    line.values.insert(metric.to_owned(), map.next_value()?);
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            }
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format_args!("the key {} stands twice", shown(&key))));
            }
        }
        Ok(line)
    }
}
