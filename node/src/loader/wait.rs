//! Loaders that use an artifact while it is on its way: they wait for ranges, or follow what becomes ready.

use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use weighlock_protocol::ManifestDigest;
use weighlock_protocol::manifest::{Layer, Manifest};
use weighlock_protocol::wire::bao::GroupSet;

use super::{Failed, Session, layers_at};
use crate::error::{Error, Result};
use crate::fetch::{Arrival, blocking};
use crate::local::frame;
use crate::local::message::{Event, Progress};
use crate::readiness::{Readiness, groups_of};

/// Ranges in one wait.
const RANGES_MAX: usize = 1024;
/// Ranges in one event; more go into further events.
const RANGES_PER_EVENT_MAX: usize = 4096;
/// Headers say where tensors are: this much of the start of each followed file is wanted soon.
const HEAD_BYTES: u64 = 256 << 10;
/// Shortest pause between two looks at what grew.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(20);
/// After a look that took long the pause is this many times as long, so that looking stays a small part of the work.
const LOOK_PAUSE_FACTOR: u32 = 4;
/// Longest pause, also while nothing is said to have grown: ranges land before the fetch of them ends.
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(200);
/// Progress that changed is told no sooner than this after the last time.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);
/// A loader hears something at least this often.
const SILENCE_MAX: Duration = Duration::from_secs(1);

impl Session {
    /// Answers once all of `ranges` is proven.
    pub(super) async fn wait(
        &self,
        stream: &mut UnixStream,
        digest: &ManifestDigest,
        path: String,
        ranges: &[(u64, u64)],
    ) -> std::result::Result<(), Failed> {
        let open = self.opened(digest)?;
        let layer = layers_at(&open.manifest, std::slice::from_ref(&path))?[0].clone();
        let wanted = groups(&layer, ranges)?;
        let goal = Goal::Groups(layer.clone(), wanted);
        let watched = self.until(stream, *digest, vec![layer], &goal).await?;
        let inode = goal.reached(&watched).unwrap_or_default();
        frame::write(stream, &Event::Ready { path, inode }).await.map_err(Failed::Socket)
    }

    /// Tells what becomes ready until all is.
    pub(super) async fn follow(
        &self,
        stream: &mut UnixStream,
        digest: &ManifestDigest,
        paths: &[String],
    ) -> std::result::Result<(), Failed> {
        let open = self.opened(digest)?;
        if paths.len() > open.manifest.files().len() {
            return Err(Error::invalid("paths must name files, each once").into());
        }
        let files: Vec<Layer> = match paths {
            [] => open.manifest.files().to_vec(),
            paths => layers_at(&open.manifest, paths)?.into_iter().cloned().collect(),
        };
        self.until(stream, *digest, files, &Goal::Told).await?;
        frame::write(stream, &Event::Complete).await.map_err(Failed::Socket)
    }

    /// Returns once the contract of a manifest is sealed here.
    pub(super) async fn contract_here(
        &self,
        stream: &mut UnixStream,
        manifest: &Manifest,
    ) -> std::result::Result<(), Failed> {
        let contract = manifest.contract().clone();
        self.until(stream, manifest.digest(), vec![contract], &Goal::Sealed).await.map(drop)
    }

    /// Looks at what is ready of `files` each time that something grew, until the goal is reached. Says how far the
    /// fetch is meanwhile.
    async fn until(
        &self,
        stream: &mut UnixStream,
        digest: ManifestDigest,
        files: Vec<Layer>,
        goal: &Goal,
    ) -> std::result::Result<Readiness, Failed> {
        let fetcher = &self.node.fetcher;
        let mut watched = Readiness::of(self.node.store.clone(), &files);
        let mut growth = fetcher.grown();
        let mut arrival: Option<Arrival> = None;
        let mut end: Option<Error> = None;
        let mut said = Said::default();
        loop {
            growth.borrow_and_update();
            let began = Instant::now();
            let (back, grown) = blocking(move || {
                let grown = watched.look()?;
                Ok((watched, grown))
            })
            .await?;
            watched = back;
            if matches!(goal, Goal::Told) {
                for file in grown {
                    for ready in file.ready.chunks(RANGES_PER_EVENT_MAX) {
                        let (path, inode, ready) = (file.path.clone(), file.inode, ready.to_vec());
                        let event = Event::Ranges { path, inode, ready };
                        frame::write(stream, &event).await.map_err(Failed::Socket)?;
                    }
                }
            }
            if goal.reached(&watched).is_some() {
                return Ok(watched);
            }
            // Only after a look, so that what came before the end counts.
            if let Some(error) = end {
                return Err(error.into());
            }
            let arriving = match &mut arrival {
                Some(arriving) => arriving,
                None => {
                    // Joins the fetch that runs, or starts one; what is ready already needs none.
                    let arriving = arrival.insert(fetcher.begin(digest).await?);
                    for (layer, groups) in goal.hints(&watched) {
                        fetcher.want_soon(&digest, layer, groups);
                    }
                    arriving
                }
            };
            let pause = (began.elapsed() * LOOK_PAUSE_FACTOR).clamp(LOOK_PAUSE_MIN, LOOK_PAUSE_MAX);
            tokio::time::sleep(pause).await;
            tokio::select! {
                ended = arriving.ended() => end = Some(match ended {
                    Err(error) => error,
                    Ok(()) => Error::unavailable("the artifact was removed from this host while it was waited for")
                        .hint("ask again, and it is fetched again"),
                }),
                changed = growth.changed() => {
                    if changed.is_err() {
                        end = Some(Error::unavailable("the daemon is stopping"));
                    }
                }
                () = tokio::time::sleep(LOOK_PAUSE_MAX) => {}
            }
            said.progress(stream, arriving.progress()).await?;
        }
    }
}

/// What a wait is for.
enum Goal {
    /// Ranges of the first file are proven.
    Groups(Layer, GroupSet),
    /// Everything is sealed, and the loader hears what grows.
    Told,
    /// Everything is sealed.
    Sealed,
}

impl Goal {
    /// The inode of the first file once it is reached (0 if there is no file).
    fn reached(&self, watched: &Readiness) -> Option<u64> {
        match self {
            Goal::Groups(_, wanted) => watched.first_has(wanted),
            Goal::Told | Goal::Sealed => watched.is_done().then_some(0),
        }
    }

    fn hints(&self, watched: &Readiness) -> Vec<(weighlock_protocol::LayerId, GroupSet)> {
        match self {
            Goal::Groups(layer, wanted) => vec![(layer.id, wanted.clone())],
            Goal::Told | Goal::Sealed => {
                let head = |size: u64| groups_of(0, size.min(HEAD_BYTES), size);
                watched.open().filter_map(|(layer, size)| Some((layer, head(size)?))).collect()
            }
        }
    }
}

/// The progress that a loader heard last, so that it hears of changes, and something now and then.
struct Said {
    at: Instant,
    progress: Option<Progress>,
}

impl Default for Said {
    fn default() -> Self {
        Self { at: Instant::now(), progress: None }
    }
}

impl Said {
    async fn progress(
        &mut self,
        stream: &mut UnixStream,
        now: Option<Progress>,
    ) -> std::result::Result<(), Failed> {
        let silent = self.at.elapsed();
        let changed = now != self.progress && silent >= PROGRESS_PAUSE;
        if changed || silent >= SILENCE_MAX {
            let event = Event::Progress(now.clone().unwrap_or_default());
            frame::write(stream, &event).await.map_err(Failed::Socket)?;
            (self.at, self.progress) = (Instant::now(), now);
        }
        Ok(())
    }
}

/// The groups of all `ranges`.
///
/// # Errors
/// None, too many, empty ones, or one that passes the end.
fn groups(layer: &Layer, ranges: &[(u64, u64)]) -> Result<GroupSet> {
    if ranges.is_empty() || ranges.len() > RANGES_MAX {
        return Err(Error::invalid(format!("a wait takes 1 to {RANGES_MAX} ranges, not {}", ranges.len())));
    }
    let mut all = GroupSet::empty();
    for (start, end) in ranges {
        all |= groups_of(*start, *end, layer.size).ok_or_else(|| {
            Error::invalid(format!("bytes {start}..{end} are no range of {:?}", layer.path))
                .hint(format!("it has {} bytes; a range has a start below its end", layer.size))
        })?;
    }
    Ok(all)
}
