//! `weighlock audit verify FILE`: checks the chain and the signatures of a log.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use weighlock_protocol::audit::{LINE_BYTES_MAX, Verified, Verifier};
use weighlock_protocol::{KeyId, UnixTime};

use crate::cli::Context;
use crate::cli::output::counted;
use crate::error::{Error, Result};

/// Where to look when a log does not hold.
const HINT: &str =
    "whoever could write the file could do that: compare with another export of that host's log";

pub(super) fn run(context: &Context, file: &Path, host: Option<KeyId>) -> Result<()> {
    let mut verifier = Verifier::new(host);
    for file in files(file)? {
        check(&mut verifier, &file)?;
    }
    let seen = verifier.seen();
    let shown = file.display();
    if seen.lines == 0 {
        return Err(Error::invalid(format!("{shown} is empty")).hint("`weighlock audit export` writes a log"));
    }
    if seen.checkpoints == 0 {
        return Err(Error::integrity(format!("nothing in {shown} is signed, so nothing of it is proven"))
            .hint("`weighlock audit export` signs what it writes"));
    }
    context.output.print(seen, |seen| {
        let ask = "compare that key with `weighlock member list`, or give it with --host-key\n";
        format!("{}{}", text(seen), if host.is_some() { "" } else { ask })
    })
}

/// What was checked, for people.
pub(super) fn text(seen: &Verified) -> String {
    let time = |ms: u64| UnixTime(ms / 1000);
    let mut out = format!(
        "{} with {}, numbers {} to {}, from {} to {}\n",
        counted(seen.lines as usize, "line"),
        counted(seen.events as usize, "event"),
        seen.first_seq,
        seen.last_seq,
        time(seen.from_ms),
        time(seen.until_ms)
    );
    if let Some(host) = seen.host {
        out += &format!("signed by {host} up to number {}\n", seen.signed_through);
    }
    if seen.unsigned_events > 0 {
        out += &format!(
            "warning: {} after that are not signed\n",
            counted(seen.unsigned_events as usize, "event")
        );
    }
    if seen.lost > 0 {
        out += &format!(
            "warning: the host says that it could not write {}\n",
            counted(seen.lost as usize, "event")
        );
    }
    out
}

/// The file, or those of a store's log.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e: std::io::Error| Error::invalid(format!("cannot read {}: {e}", path.display()));
    if !fs::metadata(path).map_err(fail)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).map_err(fail)?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    files.sort();
    Ok(files)
}

fn check(verifier: &mut Verifier, path: &Path) -> Result<()> {
    let shown = path.display();
    let fail = |e: std::io::Error| Error::invalid(format!("cannot read {shown}: {e}"));
    let before = verifier.seen().lines;
    let mut file = BufReader::new(File::open(path).map_err(fail)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let most = LINE_BYTES_MAX as u64 + 2;
        if (&mut file).take(most).read_until(b'\n', &mut line).map_err(fail)? == 0 {
            return Ok(());
        }
        let number = verifier.seen().lines + 1 - before;
        let Some(whole) = line.strip_suffix(b"\n") else {
            return Err(Error::integrity(format!("{shown} ends in the middle of line {number}")).hint(HINT));
        };
        verifier.line(whole).map_err(|fault| {
            let at =
                if before > 0 { format!(" (its own first line is {})", before + 1) } else { String::new() };
            Error::integrity(format!("{shown}{at}: {fault}")).hint(HINT)
        })?;
    }
}
