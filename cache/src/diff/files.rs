//! Whole files: equal, changed, come or gone; small texts line by line, vocabularies token by token.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use weighlock_protocol::manifest::LayerKind;

use super::DiffConfig;
use super::compare::{Outcome, Place, Task, What};
use super::error::DiffError;
use super::side::{Side, SideFile};
use super::tensors::{Change, Locus};
use super::text::{self, TextDiff};
use super::tokens::{self, TokenDiff, Vocabulary};

/// The files of two sides, matched by path; two single files are matched whatever their names.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Files {
    /// Files with the same bytes.
    pub equal: usize,
    /// All that are not equal, by path.
    pub differing: Vec<FileDiff>,
}

/// What became of one file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileDiff {
    /// Path inside the artifact; that of B where they differ.
    pub path: String,
    /// In one word.
    pub change: Change,
    /// Whether it holds tensors, which are told apart.
    pub weights: bool,
    /// Bytes in A.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub a_bytes: Option<u64>,
    /// Bytes in B.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b_bytes: Option<u64>,
    /// What changed in a small text; JSON with its keys sorted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<TextDiff>,
    /// What changed in a vocabulary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenDiff>,
}

/// A chat template that is not the same on both sides, wherever it stands (a file of its own, the tokenizer's
/// configuration, a GGUF header).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TemplateDiff {
    /// `default`, or the name of one of several.
    pub name: String,
    /// In one word.
    pub change: Change,
    /// What changed.
    pub text: TextDiff,
}

/// Files that belong together, by their place in the lists of the sides.
pub(super) struct FilePairs {
    pairs: Vec<FilePair>,
    removed: Vec<usize>,
    added: Vec<usize>,
}

struct FilePair {
    a: usize,
    b: usize,
    verdict: Verdict,
    tasks: Vec<Task>,
}

enum Verdict {
    Equal,
    Changed,
    /// Equal if all tasks are, and all tensors too.
    Read,
}

pub(super) fn pair(a: &Side, b: &Side) -> FilePairs {
    let mut found = FilePairs { pairs: Vec::new(), removed: Vec::new(), added: Vec::new() };
    let single = a.is_file && b.is_file;
    let key = |file: &SideFile| if single { String::new() } else { file.path.clone() };
    let mut in_b: BTreeMap<String, usize> = b.files.iter().map(key).zip(0..).collect();
    for (at_a, file) in a.files.iter().enumerate() {
        match in_b.remove(&key(file)) {
            Some(at_b) => found.pairs.push(matched(a, b, at_a, at_b)),
            None => found.removed.push(at_a),
        }
    }
    found.added.extend(in_b.into_values());
    found
}

fn matched(a: &Side, b: &Side, at_a: usize, at_b: usize) -> FilePair {
    let (in_a, in_b) = (&a.files[at_a], &b.files[at_b]);
    let done = |verdict| FilePair { a: at_a, b: at_b, verdict, tasks: Vec::new() };
    let bytes = |range: (u64, u64)| Task {
        a: Place { file: at_a, offset: range.0 },
        b: Place { file: at_b, offset: range.0 },
        what: What::Bytes(range.1 - range.0),
    };
    if in_a.size != in_b.size {
        return done(Verdict::Changed);
    }
    if in_a.identity == in_b.identity {
        return done(Verdict::Equal);
    }
    if let (Some(a), Some(b)) = (in_a.layer, in_b.layer) {
        return done(if a == b { Verdict::Equal } else { Verdict::Changed });
    }
    if in_a.tensors != in_b.tensors {
        // Headers that place tensors otherwise are other bytes.
        return done(Verdict::Changed);
    }
    let tasks = gaps(in_a).map(bytes).collect();
    FilePair { a: at_a, b: at_b, verdict: Verdict::Read, tasks }
}

/// What of a file lies in no tensor: all of one that has none.
fn gaps(file: &SideFile) -> impl Iterator<Item = (u64, u64)> {
    let starts = std::iter::once(0).chain(file.tensors.iter().map(|span| span.offset + span.len));
    let ends = file.tensors.iter().map(|span| span.offset).chain([file.size]);
    starts.zip(ends).filter(|(start, end)| start < end)
}

impl FilePairs {
    pub(super) fn tasks(&self) -> impl Iterator<Item = Task> {
        self.pairs.iter().flat_map(|pair| pair.tasks.iter().copied())
    }

    /// The result, and the files of B that are equal. `outcomes` are those of [`tasks`](Self::tasks).
    pub(super) fn finish(
        self,
        (a, b): (&Side, &Side),
        outcomes: impl IntoIterator<Item = Outcome>,
        tensors: &BTreeMap<Locus, Locus>,
        config: &DiffConfig,
    ) -> Result<(Files, BTreeSet<usize>), DiffError> {
        let mut outcomes = outcomes.into_iter();
        let (mut files, mut whole) = (Files::default(), BTreeSet::new());
        for pair in self.pairs {
            let own = outcomes.by_ref().take(pair.tasks.len());
            let gaps_equal = own.fold(true, |so_far, outcome| so_far & (outcome == Outcome::Equal));
            let tensor_equal = |i| tensors.get(&(pair.b, i)) == Some(&(pair.a, i));
            let equal = match pair.verdict {
                Verdict::Equal => true,
                Verdict::Changed => false,
                Verdict::Read => gaps_equal && (0..a.files[pair.a].tensors.len()).all(tensor_equal),
            };
            if equal {
                files.equal += 1;
                whole.insert(pair.b);
                continue;
            }
            let (in_a, in_b) = (&a.files[pair.a], &b.files[pair.b]);
            let mut diff = FileDiff::new(Change::Changed, Some(in_a), Some(in_b));
            if let (Some(before), Some(after)) = (content(a, in_a, config)?, content(b, in_b, config)?) {
                match (before, after) {
                    (Content::Text(a), Content::Text(b)) => diff.text = text::unified(&a, &b, config),
                    (Content::Tokens(a), Content::Tokens(b)) => diff.tokens = Some(tokens::compare(&a, &b)),
                    _ => {}
                }
            }
            files.differing.push(diff);
        }
        let lone = self.removed.iter().map(|at| FileDiff::new(Change::Removed, Some(&a.files[*at]), None));
        files.differing.extend(lone);
        let lone = self.added.iter().map(|at| FileDiff::new(Change::Added, None, Some(&b.files[*at])));
        files.differing.extend(lone);
        files.differing.sort_by(|x, y| x.path.cmp(&y.path));
        Ok((files, whole))
    }
}

impl FileDiff {
    fn new(change: Change, a: Option<&SideFile>, b: Option<&SideFile>) -> Self {
        let any = b.or(a);
        Self {
            path: any.map(|file| file.path.clone()).unwrap_or_default(),
            change,
            weights: any.is_some_and(|file| !file.tensors.is_empty()),
            a_bytes: a.map(|file| file.size),
            b_bytes: b.map(|file| file.size),
            text: None,
            tokens: None,
        }
    }
}

/// Chat templates that differ, by name.
pub(super) fn templates(a: &Side, b: &Side, config: &DiffConfig) -> Result<Vec<TemplateDiff>, DiffError> {
    let (a, b) = (templates_of(a, config)?, templates_of(b, config)?);
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let diff = |name: &String| {
        let (before, after) = (a.get(name), b.get(name));
        let change = match (before, after) {
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
            _ => Change::Changed,
        };
        let empty = String::new();
        let text = text::unified(before.unwrap_or(&empty), after.unwrap_or(&empty), config)?;
        Some(TemplateDiff { name: name.clone(), change, text })
    };
    Ok(names.into_iter().filter_map(diff).collect())
}

/// Those at the top of the directory, in the order in which loaders look for them.
fn templates_of(side: &Side, config: &DiffConfig) -> Result<BTreeMap<String, String>, DiffError> {
    let mut found = BTreeMap::new();
    let own = side.files.iter().filter_map(|file| Some((template_name(&file.path)?, file)));
    for (name, file) in own {
        if let Some(text) = read_text(side, file, config)? {
            found.insert(name.to_owned(), text);
        }
    }
    for path in ["chat_template.json", "tokenizer_config.json"] {
        let Some(file) = side.find(path) else { continue };
        for (name, text) in
            read_text(side, file, config)?.iter().flat_map(|text| text::templates_in_json(text))
        {
            found.entry(name).or_insert(text);
        }
    }
    for (name, text) in &side.header_templates {
        found.entry(name.clone()).or_insert_with(|| text.clone());
    }
    Ok(found)
}

/// The name of the template that a file at `path` holds.
fn template_name(path: &str) -> Option<&str> {
    if path == "chat_template.jinja" {
        return Some("default");
    }
    path.strip_prefix("additional_chat_templates/")?.strip_suffix(".jinja")
}

enum Content {
    Text(String),
    Tokens(Vocabulary),
}

/// What is worth comparing inside a file.
fn content(side: &Side, file: &SideFile, config: &DiffConfig) -> Result<Option<Content>, DiffError> {
    if file.path.rsplit('/').next() == Some("tokenizer.json") {
        if file.size > config.tokenizer_bytes_max {
            return Ok(None);
        }
        return Ok(tokens::vocabulary(&side.read_all(file)?).map(Content::Tokens));
    }
    let extension = file.path.rsplit_once('.').map_or("", |(_, extension)| extension);
    let is_json = extension == "json";
    let is_text = is_json || matches!(extension, "jinja" | "md" | "txt" | "toml" | "yaml" | "yml");
    // A vocabulary as text would say nothing.
    let lists = file.kind == LayerKind::Tokenizer && !file.path.ends_with("_config.json");
    if !is_text || lists || template_name(&file.path).is_some() {
        return Ok(None);
    }
    let text = read_text(side, file, config)?;
    Ok(text.map(|text| Content::Text(if is_json { text::normal_json(&text) } else { text })))
}

/// A small file that is UTF-8.
fn read_text(side: &Side, file: &SideFile, config: &DiffConfig) -> Result<Option<String>, DiffError> {
    if file.size > config.text_bytes_max {
        return Ok(None);
    }
    Ok(String::from_utf8(side.read_all(file)?).ok())
}
