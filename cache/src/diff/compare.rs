//! The work: reads both sides in chunks on all cores, compares bytes first and elements only where they differ.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::element::{Layout, RUN_ELEMENTS};
use super::error::DiffError;
use super::side::Side;
use super::stats::{Stats, Sums};
use super::{DiffConfig, DiffProgress};

/// Chunks that are handed out at once; their order in the end is that of the files, whatever the threads do.
const BATCH_CHUNKS: usize = 2048;

/// Bytes of one side: file and first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: usize,
    pub(super) offset: u64,
}

/// Two stretches to compare.
#[derive(Debug, Clone, Copy)]
pub(super) struct Task {
    pub(super) a: Place,
    pub(super) b: Place,
    pub(super) what: What,
}

/// What they consist of.
#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// As many bytes on either side, whatever they mean.
    Bytes(u64),
    /// As many elements on either side.
    Elements { count: u64, a: Layout, b: Layout, same_dtype: bool },
}

/// How two stretches compare.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Outcome {
    /// Equal bytes of one type.
    Equal,
    Differ(Stats),
}

/// Compares on its own threads.
pub(super) struct Comparer<'a> {
    pub(super) a: &'a Side,
    pub(super) b: &'a Side,
    pub(super) config: &'a DiffConfig,
    pub(super) progress: &'a (dyn Fn(DiffProgress) + Sync),
    pub(super) cancel: &'a AtomicBool,
}

/// A part of a task: in bytes or elements from its start.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    task: usize,
    start: u64,
    end: u64,
}

/// What reading a chunk gave.
enum Part {
    Equal,
    Differ(Sums),
}

/// What the chunks of a task gave so far.
#[derive(Default)]
struct Open {
    differs: bool,
    /// Of the chunks that differ.
    sums: Sums,
    /// The others, neighbours as one.
    equal: Vec<Chunk>,
}

impl Open {
    fn note_equal(&mut self, chunk: Chunk) {
        match self.equal.last_mut() {
            Some(last) if last.end == chunk.start => last.end = chunk.end,
            _ => self.equal.push(chunk),
        }
    }
}

/// What one thread reads into.
#[derive(Default)]
struct Buffers {
    bytes: [Vec<u8>; 2],
    numbers: [Vec<f64>; 2],
}

impl Comparer<'_> {
    /// Compares all tasks; answers are in their order. Memory: two chunks a thread, and for the task at hand some bytes
    /// for each run of equal chunks.
    pub(super) fn run(&self, tasks: &[Task]) -> Result<Vec<Outcome>, DiffError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = cores.min(self.config.threads_max).max(1);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let work = Work {
            run: self,
            tasks,
            chunk_bytes: (self.config.chunk_bytes as u64).max(CHUNK_BYTES_MIN),
            idle: Mutex::default(),
            done_bytes: AtomicU64::new(0),
            total_bytes: tasks.iter().map(Task::bytes).sum(),
        };
        pool.install(|| work.all())
    }
}

/// Room for the longest run of elements of any type.
const CHUNK_BYTES_MIN: u64 = RUN_ELEMENTS as u64 * 8;

impl Task {
    /// Bytes of both sides.
    fn bytes(&self) -> u64 {
        match self.what {
            What::Bytes(len) => 2 * len,
            What::Elements { count, a, b, .. } => a.bytes(count) + b.bytes(count),
        }
    }

    fn len(&self) -> u64 {
        match self.what {
            What::Bytes(len) => len,
            What::Elements { count, .. } => count,
        }
    }
}

struct Work<'a> {
    run: &'a Comparer<'a>,
    tasks: &'a [Task],
    chunk_bytes: u64,
    idle: Mutex<Vec<Buffers>>,
    done_bytes: AtomicU64,
    total_bytes: u64,
}

impl Work<'_> {
    fn all(&self) -> Result<Vec<Outcome>, DiffError> {
        self.advance(0);
        let mut outcomes = Vec::with_capacity(self.tasks.len());
        let mut open = Open::default();
        let chunks = self.tasks.iter().enumerate().flat_map(|(task, it)| self.split(task, 0, it.len()));
        self.each(chunks, |buffers, chunk| self.chunk(chunk, buffers), &mut |chunk, part| {
            match part {
                Part::Equal => open.note_equal(chunk),
                Part::Differ(sums) => {
                    open.differs = true;
                    open.sums.join(&sums);
                }
            }
            if chunk.end == self.tasks[chunk.task].len() {
                outcomes.push(self.finish(std::mem::take(&mut open))?);
            }
            Ok(())
        })?;
        Ok(outcomes)
    }

    /// Works on chunks in parallel, a batch at a time, and takes what comes of them in their order.
    fn each<T: Send>(
        &self,
        chunks: impl Iterator<Item = Chunk>,
        work: impl Fn(&mut Buffers, Chunk) -> Result<T, DiffError> + Sync,
        take: &mut dyn FnMut(Chunk, T) -> Result<(), DiffError>,
    ) -> Result<(), DiffError> {
        let mut chunks = chunks.peekable();
        while chunks.peek().is_some() {
            let batch: Vec<Chunk> = chunks.by_ref().take(BATCH_CHUNKS).collect();
            let one = |chunk: &Chunk| self.with_buffers(|buffers| work(buffers, *chunk));
            let done: Vec<Result<T, DiffError>> = batch.par_iter().map(one).collect();
            for (chunk, done) in batch.into_iter().zip(done) {
                take(chunk, done?)?;
            }
        }
        Ok(())
    }

    /// A stretch of a task in chunks: at least one, also of an empty task, so that it has an outcome.
    fn split(&self, task: usize, start: u64, end: u64) -> impl Iterator<Item = Chunk> + use<> {
        let step = match self.tasks[task].what {
            What::Bytes(_) => self.chunk_bytes,
            What::Elements { a, b, .. } => {
                let run = RUN_ELEMENTS as u64;
                self.chunk_bytes / a.bytes(run).max(b.bytes(run)) * run
            }
        };
        let count = (end - start).div_ceil(step).max(1);
        (0..count).map(move |i| {
            let start = start + i * step;
            Chunk { task, start, end: (start + step).min(end) }
        })
    }

    /// Joins what a task gave.
    fn finish(&self, open: Open) -> Result<Outcome, DiffError> {
        if !open.differs {
            return Ok(Outcome::Equal);
        }
        let mut sums = open.sums;
        // Where something differs, the equal chunks still say how large A is. Few tensors change in part only.
        let equal = open.equal.iter().flat_map(|run| self.split(run.task, run.start, run.end));
        self.each(equal, |buffers, chunk| self.equal_chunk(chunk, buffers), &mut |_, part| {
            sums.join(&part);
            Ok(())
        })?;
        Ok(Outcome::Differ(sums.finish()))
    }

    fn chunk(&self, chunk: Chunk, buffers: &mut Buffers) -> Result<Part, DiffError> {
        let task = &self.tasks[chunk.task];
        let ([a, b], numbers) = (&mut buffers.bytes, &mut buffers.numbers);
        self.read(self.run.a, task.a, task.bytes_of(chunk, 0), a)?;
        self.read(self.run.b, task.b, task.bytes_of(chunk, 1), b)?;
        let part = match task.what {
            What::Bytes(_) | What::Elements { same_dtype: true, .. } if a == b => Part::Equal,
            What::Bytes(_) => Part::Differ(Sums::of_bytes(a, b)),
            What::Elements { a: of_a, b: of_b, same_dtype, .. } => {
                Part::Differ(sums(chunk.end - chunk.start, (a, of_a), (b, of_b), same_dtype, numbers))
            }
        };
        self.advance((a.len() + b.len()) as u64);
        Ok(part)
    }

    /// The sums of a chunk that is equal on both sides.
    fn equal_chunk(&self, chunk: Chunk, buffers: &mut Buffers) -> Result<Sums, DiffError> {
        let task = &self.tasks[chunk.task];
        let What::Elements { a: layout, .. } = task.what else {
            return Ok(Sums::of_equal(chunk.end - chunk.start));
        };
        let a = &mut buffers.bytes[0];
        self.read(self.run.a, task.a, task.bytes_of(chunk, 0), a)?;
        Ok(sums(chunk.end - chunk.start, (a, layout), (a, layout), true, &mut buffers.numbers))
    }

    fn read(&self, side: &Side, place: Place, range: (u64, u64), to: &mut Vec<u8>) -> Result<(), DiffError> {
        if self.run.cancel.load(Ordering::Relaxed) {
            return Err(DiffError::Cancelled);
        }
        to.resize((range.1 - range.0) as usize, 0);
        side.read(place.file, place.offset + range.0, to)
    }

    fn with_buffers<T>(&self, work: impl FnOnce(&mut Buffers) -> T) -> T {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffers = idle().pop().unwrap_or_default();
        let done = work(&mut buffers);
        idle().push(buffers);
        done
    }

    fn advance(&self, bytes: u64) {
        let done_bytes = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.run.progress)(DiffProgress { done_bytes, total_bytes: self.total_bytes });
    }
}

impl Task {
    /// Where a chunk begins and ends on a side, in bytes from the start of the task.
    fn bytes_of(&self, chunk: Chunk, side: usize) -> (u64, u64) {
        match self.what {
            What::Bytes(_) => (chunk.start, chunk.end),
            What::Elements { a, b, .. } => {
                let layout = if side == 0 { a } else { b };
                (layout.bytes(chunk.start), layout.bytes(chunk.end))
            }
        }
    }
}

/// Sums over `count` elements.
fn sums(
    count: u64,
    (a, of_a): (&[u8], Layout),
    (b, of_b): (&[u8], Layout),
    same_dtype: bool,
    numbers: &mut [Vec<f64>; 2],
) -> Sums {
    let mut sums = Sums::default();
    if let (true, Some(wide)) = (same_dtype, of_a.wide) {
        sums.add_wide(wide, a, b);
        return sums;
    }
    let run = RUN_ELEMENTS as u64;
    let runs = a.chunks(of_a.bytes(run) as usize).zip(b.chunks(of_b.bytes(run) as usize));
    let mut left = count;
    for (a, b) in runs {
        let elements = left.min(run) as usize;
        left -= elements as u64;
        for (buffer, (bytes, layout)) in numbers.iter_mut().zip([(a, of_a), (b, of_b)]) {
            buffer.resize(RUN_ELEMENTS, 0.0);
            (layout.read)(bytes, &mut buffer[..elements]);
        }
        sums.add(&numbers[0][..elements], &numbers[1][..elements]);
    }
    sums
}
