//! Which tensors of two sides belong together, and what became of each.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::compare::{Outcome, Place, Task, What};
use super::element::{Layout, layout};
use super::side::{Side, SideFile};
use super::stats::Stats;
use crate::plan::TensorSpan;

/// The tensors of two sides, matched by name.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Tensors {
    /// Tensors with the same name, dtype, shape and bytes.
    pub equal: usize,
    /// Their bytes.
    pub equal_bytes: u64,
    /// Changes of dtype or block type, most tensors first.
    pub dtype_shifts: Vec<DtypeShift>,
    /// All that are not equal, by name.
    pub differing: Vec<TensorDiff>,
}

/// Tensors that went from one dtype or block type to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DtypeShift {
    /// Type in A.
    pub from: String,
    /// Type in B.
    pub to: String,
    /// How many.
    pub tensors: usize,
}

/// What became of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorDiff {
    /// Its name.
    pub name: String,
    /// In one word.
    pub change: Change,
    /// In A.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub a: Option<TensorSide>,
    /// In B.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b: Option<TensorSide>,
    /// What `stats` counts. Absent: not compared, because shapes or types do not allow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared: Option<Compared>,
    /// How far apart they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
}

/// What became of something, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Other bytes of the same dtype and shape; other bytes of a file.
    Changed,
    /// Another dtype or block type, the same shape.
    Dtype,
    /// Another shape: not compared.
    Shape,
    /// Only in B.
    Added,
    /// Only in A.
    Removed,
}

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compared {
    /// Elements; those of block types after dequantization.
    Elements,
    /// Bytes: the type is one whose elements are not read.
    Bytes,
}

/// One side of a [`TensorDiff`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorSide {
    /// Element or block type.
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Length in bytes.
    pub bytes: u64,
    /// The file that holds it.
    pub file: String,
}

/// A tensor of a side: file and place in its list.
pub(super) type Locus = (usize, usize);

/// Tensors that belong together.
pub(super) struct Pair {
    pub(super) a: Locus,
    pub(super) b: Locus,
    /// What is to be read; `None` where that is known before, or cannot be.
    pub(super) task: Option<Task>,
    known: Known,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Equal,
    /// Elements or bytes are read.
    Open(Compared),
    Incomparable,
}

/// All tensors of two sides.
pub(super) struct Pairing {
    pub(super) pairs: Vec<Pair>,
    removed: Vec<Locus>,
    added: Vec<Locus>,
}

/// Matches tensors by name; where a side has a name in several files, by name and file.
pub(super) fn pair(a: &Side, b: &Side) -> Pairing {
    let twice: BTreeSet<&str> = [a, b].into_iter().flat_map(repeated).collect();
    let by_path = !(a.is_file && b.is_file);
    let mut in_b = index(b, &twice, by_path);
    let mut pairing = Pairing { pairs: Vec::new(), removed: Vec::new(), added: Vec::new() };
    for (key, at_a) in index(a, &twice, by_path) {
        match in_b.remove(&key) {
            Some(at_b) => pairing.pairs.push(matched(a, b, at_a, at_b)),
            None => pairing.removed.push(at_a),
        }
    }
    pairing.added.extend(in_b.into_values());
    pairing
}

impl Pairing {
    /// The result, and where equal tensors of B lie in A. `outcomes` are those of the pairs that have a task.
    pub(super) fn finish(
        self,
        a: &Side,
        b: &Side,
        outcomes: impl IntoIterator<Item = Outcome>,
    ) -> (Tensors, BTreeMap<Locus, Locus>) {
        let mut outcomes = outcomes.into_iter();
        let mut tensors = Tensors::default();
        let mut equal = BTreeMap::new();
        let mut shifts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for pair in self.pairs {
            let ((_, in_a), (_, in_b)) = (a.tensor(pair.a), b.tensor(pair.b));
            let outcome = pair.task.and_then(|_| outcomes.next());
            if pair.known == Known::Equal || outcome == Some(Outcome::Equal) {
                tensors.equal += 1;
                tensors.equal_bytes += in_a.len;
                equal.insert(pair.b, pair.a);
                continue;
            }
            let change = if in_a.shape != in_b.shape {
                Change::Shape
            } else if in_a.dtype != in_b.dtype {
                Change::Dtype
            } else {
                Change::Changed
            };
            if in_a.dtype != in_b.dtype {
                *shifts.entry((&in_a.dtype, &in_b.dtype)).or_default() += 1;
            }
            let stats = match outcome {
                Some(Outcome::Differ(stats)) => Some(stats),
                _ => None,
            };
            tensors.differing.push(TensorDiff {
                name: in_a.name.clone(),
                change,
                a: Some(a.tensor_side(pair.a)),
                b: Some(b.tensor_side(pair.b)),
                compared: match pair.known {
                    Known::Open(compared) => Some(compared),
                    _ => None,
                },
                stats,
            });
        }
        let lone = |side: &Side, at: Locus| (side.tensor(at).1.name.clone(), Some(side.tensor_side(at)));
        for at in self.removed {
            let (name, a) = lone(a, at);
            let change = Change::Removed;
            tensors.differing.push(TensorDiff { name, change, a, b: None, compared: None, stats: None });
        }
        for at in self.added {
            let (name, b) = lone(b, at);
            let change = Change::Added;
            tensors.differing.push(TensorDiff { name, change, a: None, b, compared: None, stats: None });
        }
        tensors.differing.sort_by(|x, y| (&x.name, x.file()).cmp(&(&y.name, y.file())));
        tensors.dtype_shifts = shifts
            .into_iter()
            .map(|((from, to), tensors)| DtypeShift { from: from.into(), to: to.into(), tensors })
            .collect();
        tensors.dtype_shifts.sort_by_key(|shift| std::cmp::Reverse(shift.tensors));
        (tensors, equal)
    }
}

impl Tensors {
    /// How many have become of `change`.
    pub fn count(&self, change: Change) -> usize {
        self.differing.iter().filter(|tensor| tensor.change == change).count()
    }
}

impl TensorDiff {
    fn file(&self) -> Option<&str> {
        self.b.as_ref().or(self.a.as_ref()).map(|side| side.file.as_str())
    }

    /// Whether every element has the value that it had, although the bytes or the dtype differ.
    pub fn keeps_values(&self) -> bool {
        self.compared == Some(Compared::Elements) && self.stats.is_some_and(|stats| stats.changed == 0)
    }
}

impl Side {
    fn tensor(&self, (file, tensor): Locus) -> (&SideFile, &TensorSpan) {
        (&self.files[file], &self.files[file].tensors[tensor])
    }

    fn tensor_side(&self, at: Locus) -> TensorSide {
        let (file, span) = self.tensor(at);
        TensorSide {
            dtype: span.dtype.clone(),
            shape: span.shape.clone(),
            bytes: span.len,
            file: file.path.clone(),
        }
    }

    fn tensor_hash(&self, (file, tensor): Locus) -> Option<weighlock_protocol::LayerId> {
        self.files[file].hashes.as_ref().map(|hashes| hashes[tensor])
    }

    fn loci(&self) -> impl Iterator<Item = (Locus, &SideFile, &TensorSpan)> {
        self.files.iter().enumerate().flat_map(|(file, it)| {
            it.tensors.iter().enumerate().map(move |(tensor, span)| ((file, tensor), it, span))
        })
    }
}

/// Names that stand in several files of one side.
fn repeated(side: &Side) -> BTreeSet<&str> {
    let mut seen = BTreeSet::new();
    side.loci().map(|(_, _, span)| span.name.as_str()).filter(|name| !seen.insert(*name)).collect()
}

fn index<'a>(side: &'a Side, twice: &BTreeSet<&str>, by_path: bool) -> BTreeMap<(&'a str, &'a str), Locus> {
    let path = |file: &'a SideFile, name: &str| {
        if by_path && twice.contains(name) { file.path.as_str() } else { "" }
    };
    side.loci().map(|(at, file, span)| ((span.name.as_str(), path(file, &span.name)), at)).collect()
}

fn matched(a: &Side, b: &Side, at_a: Locus, at_b: Locus) -> Pair {
    let ((file_a, in_a), (file_b, in_b)) = (a.tensor(at_a), b.tensor(at_b));
    let pair = |task, known| Pair { a: at_a, b: at_b, task, known };
    if in_a.shape != in_b.shape {
        return pair(None, Known::Incomparable);
    }
    let same_dtype = in_a.dtype == in_b.dtype;
    let same_place = file_a.identity == file_b.identity && in_a.offset == in_b.offset;
    let same_hash = a.tensor_hash(at_a).is_some_and(|hash| b.tensor_hash(at_b) == Some(hash));
    if same_dtype && in_a.len == in_b.len && (same_place || same_hash || in_a.len == 0) {
        return pair(None, Known::Equal);
    }
    let task = |what| Task {
        a: Place { file: at_a.0, offset: in_a.offset },
        b: Place { file: at_b.0, offset: in_b.offset },
        what,
    };
    match (elements(in_a), elements(in_b)) {
        (Some((count, of_a)), Some((count_b, of_b))) if count == count_b => {
            let what = What::Elements { count, a: of_a, b: of_b, same_dtype };
            pair(Some(task(what)), Known::Open(Compared::Elements))
        }
        _ if same_dtype && in_a.len == in_b.len => {
            pair(Some(task(What::Bytes(in_a.len))), Known::Open(Compared::Bytes))
        }
        _ => pair(None, Known::Incomparable),
    }
}

/// The elements of a tensor and how they are read, if they can be.
fn elements(span: &TensorSpan) -> Option<(u64, Layout)> {
    let layout = layout(&span.dtype)?;
    let count = span.len / layout.block_bytes * layout.block_elements;
    (layout.bytes(count) == span.len).then_some((count, layout))
}
