//! `weighlock top`: what moves now, once a second.

mod view;

use std::io::IsTerminal;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use clap::Args;
use console::{Key, Term};

pub(super) use self::view::place;
use self::view::{Rates, View};
use super::Context;
use crate::error::{Error, Result};
use crate::local::message::{Activity, AdminRequest};

/// What is fetched and given to others now, and how fast; q or Ctrl-C ends it.
///
/// On a terminal a table, once a second; elsewhere one snapshot. With --json one object a second, in lines.
#[derive(Debug, Args)]
pub(super) struct Top {
    /// One snapshot; it takes a second, since a rate needs two looks
    #[arg(long)]
    once: bool,
}

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

impl Top {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let json = context.output.is_json();
        if json && !self.once {
            return lines(context);
        }
        if !json && !self.once && std::io::stdout().is_terminal() {
            return live(context);
        }
        let mut rates = Rates::default();
        rates.note(look(context)?);
        std::thread::sleep(PAUSE);
        let view = rates.note(look(context)?);
        context.output.print(&view, |view| view.text(&context.dirs.data))
    }
}

fn look(context: &Context) -> Result<Activity> {
    context.ask(&AdminRequest::Top)
}

/// One object a second, until nobody reads any more.
fn lines(context: &Context) -> Result<()> {
    let mut rates = Rates::default();
    loop {
        let view = rates.note(look(context)?);
        if !context.output.try_print(&view, |_| String::new())? {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
}

/// A table on the terminal, until a key ends it.
fn live(context: &Context) -> Result<()> {
    let mut rates = Rates::default();
    // Without a daemon it ends here. One that goes away later may come back.
    let mut shown = Ok(rates.note(look(context)?));
    let term = Term::buffered_stdout();
    let keys = keys();
    let gone = |e: std::io::Error| Error::internal(format!("cannot draw: {e}"));
    term.clear_screen().map_err(gone)?;
    loop {
        draw(&term, &frame(&shown, &context.dirs.data)).map_err(gone)?;
        match keys.recv_timeout(PAUSE) {
            Ok(()) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
            // There is no keyboard; a signal ends it.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(PAUSE),
        }
        shown = look(context).map(|activity| rates.note(activity));
    }
}

fn frame(shown: &Result<View>, store: &Path) -> String {
    match shown {
        Ok(view) => view.text(store),
        Err(error) => format!("{error}\ntrying again; q ends\n"),
    }
}

/// Over the frame before, so that nothing flickers.
fn draw(term: &Term, text: &str) -> std::io::Result<()> {
    let (rows, columns) = term.size();
    term.move_cursor_to(0, 0)?;
    for line in fit(text, rows.into(), columns.into()) {
        term.clear_line()?;
        term.write_line(&line)?;
    }
    term.clear_to_end_of_screen()?;
    term.flush()
}

/// What of a text fits a terminal, the cursor's line below it left out.
fn fit(text: &str, rows: usize, columns: usize) -> Vec<String> {
    let all: Vec<&str> = text.lines().collect();
    let rows = rows.saturating_sub(1).max(1);
    let narrow = |line: &str| line.chars().take(columns.max(1)).collect::<String>();
    if all.len() <= rows {
        return all.into_iter().map(narrow).collect();
    }
    let mut out: Vec<String> = all[..rows - 1].iter().map(|line| narrow(line)).collect();
    out.push(narrow(&format!("... and {} lines more; a higher window shows them", all.len() - (rows - 1))));
    out
}

/// Tells when a key was pressed that ends it. The terminal is as it was by then: the library changes it for one key.
fn keys() -> Receiver<()> {
    let (pressed, keys) = mpsc::channel();
    std::thread::spawn(move || {
        let term = Term::stdout();
        loop {
            match term.read_key_raw() {
                Ok(Key::Char('q' | 'Q') | Key::CtrlC) => {
                    let _ = pressed.send(());
                    return;
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    });
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_terminal_gets_what_fits_and_is_told_of_the_rest() {
        let text = "one two\nthree\nfour\nfive\n";
        assert_eq!(fit(text, 5, 80), ["one two", "three", "four", "five"]);
        assert_eq!(fit(text, 4, 5), ["one t", "three", "... a"]);
        assert_eq!(fit(text, 4, 80)[2], "... and 2 lines more; a higher window shows them");
        assert_eq!(fit(text, 0, 0).len(), 1);
    }
}
