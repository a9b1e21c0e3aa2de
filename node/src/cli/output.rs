//! Text for people, JSON for scripts.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use indicatif::HumanBytes;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::local::message::SCHEMA_VERSION;

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    bars: bool,
    /// Whether progress goes to standard output, in lines of JSON before the answer.
    lines: bool,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, bars: !json && !quiet && std::io::stderr().is_terminal(), lines: json }
    }

    /// For a command whose standard output is one document: progress is drawn on a terminal, or not told.
    pub(super) fn one_document(self) -> Self {
        Self { bars: !self.quiet && std::io::stderr().is_terminal(), lines: false, ..self }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints `value` as JSON, or what `text` makes of it.
    pub(crate) fn print<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        // `weighlock ls | head` is not an error.
        self.try_print(value, text).map(drop)
    }

    /// As [`print`](Self::print); false when nobody reads any more.
    pub(super) fn try_print<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<bool> {
        let line = if self.json {
            let value = serde_json::to_value(value).map_err(Error::internal)?;
            let mut object = match value {
                Value::Object(object) => object,
                list => serde_json::Map::from_iter([("items".to_owned(), list)]),
            };
            object.insert("schema_version".into(), json!(SCHEMA_VERSION));
            Value::Object(object).to_string()
        } else {
            // Names and texts of models and peers are in it: nothing that a terminal would act on.
            let plain = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c };
            text(value).chars().map(plain).collect()
        };
        let mut out = std::io::stdout().lock();
        let newline = if line.ends_with('\n') || line.is_empty() { "" } else { "\n" };
        match write!(out, "{line}{newline}").and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
            Err(e) => Err(Error::internal(format!("cannot print: {e}"))),
        }
    }

    /// Whether progress is told in lines of JSON.
    pub(super) fn has_lines(&self) -> bool {
        self.lines
    }

    /// Whether progress is drawn.
    pub(super) fn has_bars(&self) -> bool {
        self.bars
    }

    /// Whether only what was asked for is printed.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
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
        Kind::Internal => "the daemon's log says more; `weighlock log-level debug` makes it say more",
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
    fn tables_align() {
        let rows = vec![vec!["a".into(), "10".into()], vec!["long".into(), "5".into()]];
        assert_eq!(table(&["NAME", "N"], &[1], &rows), "NAME   N\na     10\nlong   5\n");
    }
}
