//! How far something long is: a bar on a terminal, JSON lines for scripts.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::output::{Output, bytes, counted};
use super::rate::{Rate, duration};
use crate::local::message::{Progress, SCHEMA_VERSION};

/// A progress bar on standard error, or JSON lines, or nothing.
pub(crate) struct Bar {
    output: Output,
    /// Where the daemon keeps things, for what is said of its disk.
    store: PathBuf,
    bar: Option<ProgressBar>,
    phase: String,
    since: Instant,
    rate: Rate,
    pace: Pace,
}

/// Which steps are worth a line: what changed, at most one a second within a phase.
#[derive(Debug, Default)]
struct Pace {
    last: Option<(Instant, Progress)>,
}

impl Pace {
    const PAUSE: Duration = Duration::from_secs(1);

    fn is_due(&mut self, now: Instant, step: &Progress) -> bool {
        let due = match &self.last {
            None => true,
            Some((_, last)) if last.phase != step.phase => true,
            Some((at, last)) => last != step && now.duration_since(*at) >= Self::PAUSE,
        };
        if due {
            self.last = Some((now, step.clone()));
        }
        due
    }
}

impl Bar {
    pub(super) fn new(output: Output, store: &Path) -> Self {
        Self {
            output,
            store: store.to_owned(),
            bar: None,
            phase: String::new(),
            since: Instant::now(),
            rate: Rate::default(),
            pace: Pace::default(),
        }
    }

    pub(crate) fn show(&mut self, step: &Progress) {
        let entered = self.phase != step.phase;
        if entered {
            self.clear();
            self.phase.clone_from(&step.phase);
            // What came in another way, or before, says nothing of how fast it comes now.
            self.rate = Rate::default();
        }
        self.rate.note(u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX), step.done_bytes);
        if self.output.has_lines() {
            self.line(step);
        } else if self.output.has_bars() {
            self.draw(step, entered);
        } else if entered && step.phase == NO_SPACE && !self.output.is_quiet() {
            // Not progress, but what somebody must do.
            let _ = writeln!(std::io::stderr().lock(), "{}", disk_full(&self.store));
        }
    }

    pub(crate) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn line(&mut self, step: &Progress) {
        if !self.pace.is_due(Instant::now(), step) {
            return;
        }
        let mut line = json!(step);
        line["event"] = json!("progress");
        line["schema_version"] = json!(SCHEMA_VERSION);
        line["rate_bytes_per_s"] = json!(self.rate.bytes_per_s());
        line["left_s"] = json!(self.left_s(step));
        if step.phase == NO_SPACE {
            line["message"] = json!(disk_full(&self.store));
        }
        let _ = writeln!(std::io::stdout().lock(), "{line}");
    }

    fn draw(&mut self, step: &Progress, entered: bool) {
        if entered {
            let bar = ProgressBar::new(step.total_bytes);
            let template = match step.phase.as_str() {
                "look" => "{prefix:>8} for a host that has it, {elapsed}",
                NO_SPACE => "{prefix:>8} at {bytes} of {total_bytes}: {msg}",
                _ => "{prefix:>8} [{bar:30}] {bytes}/{total_bytes} {msg}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(if step.phase == NO_SPACE { "paused" } else { step.phase.as_str() }.to_owned());
            bar.enable_steady_tick(Duration::from_millis(250));
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_length(step.total_bytes);
            bar.set_position(step.done_bytes);
            bar.set_message(match step.phase.as_str() {
                NO_SPACE => disk_full(&self.store),
                _ => message(step, self.rate.bytes_per_s(), self.left_s(step)),
            });
        }
    }

    fn left_s(&self, step: &Progress) -> Option<u64> {
        self.rate.left_s(step.total_bytes.saturating_sub(step.done_bytes))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The phase in which a fetch waits for room on the disk.
pub(crate) const NO_SPACE: &str = "no space";

/// What a person must do while a fetch waits for room in the store.
pub(crate) fn disk_full(store: &Path) -> String {
    format!(
        "the disk is full: waiting for room in {}; free some, for example with `weighlock rm`",
        store.display()
    )
}

/// `12.00 MiB/s, 3 min left, from 2 hosts`, as far as it is known.
fn message(step: &Progress, rate: Option<u64>, left_s: Option<u64>) -> String {
    let (reuse, moves) = (step.phase == "reuse", step.done_bytes < step.total_bytes);
    let mut parts = Vec::new();
    parts.extend(rate.filter(|_| moves).map(|rate| format!("{}/s", bytes(rate))));
    // How much of it other artifacts have is not known before the end.
    parts.extend(left_s.filter(|_| moves && !reuse).map(|seconds| format!("{} left", duration(seconds))));
    if reuse {
        parts.push(format!("{} from artifacts that are here", bytes(step.reused_bytes)));
    } else if step.sources > 0 {
        parts.push(format!("from {}", counted(step.sources, "host")));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_gets_a_line_and_not_too_often() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let step =
            |phase: &str, done_bytes| Progress { phase: phase.into(), done_bytes, ..Progress::default() };
        let mut pace = Pace::default();
        assert!(pace.is_due(at(0), &step("fetch", 0)), "the first");
        assert!(!pace.is_due(at(5000), &step("fetch", 0)), "nothing new");
        assert!(pace.is_due(at(5100), &step("fetch", 1)), "new");
        assert!(!pace.is_due(at(5200), &step("fetch", 2)), "new, but too soon");
        assert!(pace.is_due(at(5300), &step("seal", 2)), "another phase");
        assert!(pace.is_due(at(6300), &step("seal", 3)), "a second later");
    }

    #[test]
    fn a_fetch_tells_rate_time_and_sources_as_far_as_they_are_known() {
        let step = |phase: &str, done_bytes, sources| Progress {
            phase: phase.into(),
            done_bytes,
            total_bytes: 100 << 20,
            sources,
            reused_bytes: 3 << 20,
        };
        let rate = Some(12 << 20);
        assert_eq!(message(&step("fetch", 1, 2), rate, Some(180)), "12.00 MiB/s, 3 min left, from 2 hosts");
        assert_eq!(message(&step("fetch", 1, 1), Some(0), None), "0 B/s, from 1 host");
        assert_eq!(message(&step("fetch", 0, 0), None, None), "");
        assert_eq!(message(&step("seal", 100 << 20, 1), Some(0), None), "from 1 host", "nothing is left");
        let reuse = message(&step("reuse", 1, 0), rate, Some(180));
        assert_eq!(reuse, "12.00 MiB/s, 3.00 MiB from artifacts that are here");
    }

    #[test]
    fn a_full_disk_is_told_with_its_directory_and_what_to_do() {
        let told = disk_full(Path::new("/srv/store"));
        assert!(
            told.contains("waiting for room in /srv/store;") && told.contains("`weighlock rm`"),
            "{told}"
        );
    }
}
