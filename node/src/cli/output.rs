//! Text for people, JSON for scripts, progress on a terminal.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::local::message::{Progress, SCHEMA_VERSION};

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    bars: bool,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, bars: !json && !quiet && std::io::stderr().is_terminal() }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints `value` as JSON, or what `text` makes of it.
    pub(crate) fn print<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        let line = if self.json {
            let value = serde_json::to_value(value).map_err(Error::internal)?;
            let mut object = match value {
                Value::Object(object) => object,
                list => serde_json::Map::from_iter([("items".to_owned(), list)]),
            };
            object.insert("schema_version".into(), json!(SCHEMA_VERSION));
            Value::Object(object).to_string()
        } else {
            text(value)
        };
        let mut out = std::io::stdout().lock();
        let newline = if line.ends_with('\n') || line.is_empty() { "" } else { "\n" };
        match write!(out, "{line}{newline}").and_then(|()| out.flush()) {
            // `weighlock ls | head` is not an error.
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Error::internal(format!("cannot print: {e}")))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn progress(&self) -> Bar {
        Bar { output: *self, bar: None, phase: String::new(), pace: Pace::default() }
    }
}

/// A progress bar on standard error, or JSON lines, or nothing.
pub(crate) struct Bar {
    output: Output,
    bar: Option<ProgressBar>,
    phase: String,
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
    pub(crate) fn show(&mut self, step: &Progress) {
        if self.output.json {
            if !self.pace.is_due(Instant::now(), step) {
                return;
            }
            let mut line = json!(step);
            line["event"] = json!("progress");
            line["schema_version"] = json!(SCHEMA_VERSION);
            let _ = writeln!(std::io::stdout().lock(), "{line}");
            return;
        }
        if !self.output.bars {
            return;
        }
        if self.phase != step.phase {
            self.clear();
            self.phase.clone_from(&step.phase);
            let bar = ProgressBar::new(step.total_bytes);
            let template = match step.phase.as_str() {
                "look" => "{prefix:>8} for a host that has it, {elapsed}",
                _ => "{prefix:>8} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left{msg}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(step.phase.clone());
            bar.enable_steady_tick(Duration::from_millis(250));
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_length(step.total_bytes);
            bar.set_position(step.done_bytes);
            if step.sources > 0 {
                bar.set_message(format!(", from {}", counted(step.sources, "host")));
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Prints an error and gives its exit code.
pub(crate) fn fail(error: &Error, json: bool) -> ExitCode {
    let mut err = std::io::stderr().lock();
    if json {
        let line = json!({"schema_version": SCHEMA_VERSION, "event": "error", "error": error});
        let _ = writeln!(std::io::stdout().lock(), "{line}");
    }
    let _ = writeln!(err, "error: {}", error.message);
    let _ = writeln!(err, "hint: {}", error.hint.as_deref().unwrap_or(usual_hint(error.kind)));
    ExitCode::from(error.kind.exit_code())
}

/// What to do where an error itself does not say.
fn usual_hint(kind: Kind) -> &'static str {
    match kind {
        Kind::Internal => "the daemon's log says more; `weighlock up --log debug` most",
        Kind::Invalid => "`weighlock help` and `weighlock help COMMAND` say what is expected",
        Kind::NotFound => "`weighlock ls` lists what there is",
        Kind::Refused => "`weighlock status` tells about this host and its cluster",
        Kind::Unavailable => "`weighlock status` and `weighlock peers` tell who is there",
        Kind::Integrity => "fetch or add it again; `weighlock peers` names hosts that sent bad bytes",
    }
}

/// Columns as wide as they need to be, two spaces apart; numbers to the right where `right` says so.
pub(crate) fn table(head: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().enumerate().map(|(i, cell)| {
            let fill = " ".repeat(widths[i].saturating_sub(cell.chars().count()));
            if right.contains(&i) { format!("{fill}{cell}") } else { format!("{cell}{fill}") }
        });
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut out = line(head.to_vec());
    for row in rows {
        out += &line(row.iter().map(String::as_str).collect());
    }
    out
}

/// `1.5 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    HumanBytes(n).to_string()
}

/// `1 file`, `2 files`.
pub(crate) fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// `just now`, `5 min`, `3 h`, `12 d`.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => "just now".into(),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        assert_eq!(
            [counted(0, "file"), counted(1, "file"), counted(2, "file")],
            ["0 files", "1 file", "2 files"]
        );
    }

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
    fn tables_align() {
        let rows = vec![vec!["a".into(), "10".into()], vec!["long".into(), "5".into()]];
        assert_eq!(table(&["NAME", "N"], &[1], &rows), "NAME   N\na     10\nlong   5\n");
    }
}
