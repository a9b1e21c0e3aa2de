//! Hashes data on disk twice in one read: by MD5, to prove that it is what DVC names, and by SHA-256, for trust.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use md5::Md5;
use md5::digest::Digest;
use rayon::prelude::*;
use sha2::Sha256 as Sha256State;
use walkdir::WalkDir;
use weighlock_protocol::Sha256;

use super::{DATASET_FILES_MAX, DvcError, Entry};

/// Bytes read at a time.
const BLOCK_LEN: usize = 1 << 20;

/// A file's hashes.
struct Hashes {
    md5: String,
    sha256: [u8; 32],
    size: u64,
}

/// The SHA-256 of data, if it lies there, after proving that it is what `entry` of `file` says.
pub(super) fn proven(file: &Path, data: &Path, entry: &Entry) -> Result<Option<Sha256>, DvcError> {
    // Links are followed: DVC may link into its cache.
    let kind = match fs::metadata(data) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DvcError::Io { path: data.to_owned(), error }),
    };
    let changed = |what: String| DvcError::Changed { path: file.to_owned(), data: data.to_owned(), what };
    let named = entry.md5.as_deref().unwrap_or_default();
    if named.ends_with(".dir") != kind.is_dir() {
        return Err(changed("one is a directory, the other is not".into()));
    }
    let (md5, sha256, size, files) = match kind {
        kind if kind.is_dir() => directory(data)?,
        kind if kind.is_file() => {
            let hashes = of_file(data).map_err(|error| DvcError::Io { path: data.to_owned(), error })?;
            (hashes.md5, Sha256(hashes.sha256), hashes.size, 1)
        }
        _ => return Err(DvcError::Special { data: data.to_owned() }),
    };
    if entry.size.is_some_and(|named| named != size) {
        return Err(changed(format!("{size} bytes instead of {}", entry.size.unwrap_or_default())));
    }
    if entry.nfiles.is_some_and(|named| named != files) {
        return Err(changed(format!("{files} files instead of {}", entry.nfiles.unwrap_or_default())));
    }
    // DVC 2 hashed text with other line ends, and does not say which files it took for text.
    if entry.hash.is_some() && md5 != named {
        return Err(changed(format!("its MD5 is {md5} instead of {named}")));
    }
    Ok(Some(sha256))
}

/// DVC's MD5 of a directory, our SHA-256, the bytes of its files and their number.
fn directory(data: &Path) -> Result<(String, Sha256, u64, u64), DvcError> {
    let mut files = Vec::new();
    for entry in WalkDir::new(data).follow_links(true) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(data).to_owned();
            DvcError::Io { path, error: error.into() }
        })?;
        if entry.file_type().is_dir() {
            continue;
        }
        let special = || DvcError::Special { data: entry.path().to_owned() };
        if !entry.file_type().is_file() {
            return Err(special());
        }
        let relative = entry.path().strip_prefix(data).ok().and_then(Path::to_str).ok_or_else(special)?;
        // Linux and macOS have `/` already.
        files.push((relative.replace(std::path::MAIN_SEPARATOR, "/"), entry.path().to_owned()));
        if files.len() > DATASET_FILES_MAX {
            return Err(DvcError::Files { data: data.to_owned() });
        }
    }
    files.sort();
    let hashed: Result<Vec<Hashes>, DvcError> = files
        .par_iter()
        .map(|(_, path)| of_file(path).map_err(|error| DvcError::Io { path: path.clone(), error }))
        .collect();
    let hashed = hashed?;
    let mut listing = String::from("[");
    let mut ours = Sha256State::new();
    ours.update(b"weighlock dataset files v1\n");
    for ((relative, _), hashes) in files.iter().zip(&hashed) {
        let comma = if listing.len() > 1 { ", " } else { "" };
        listing.push_str(&format!(
            "{comma}{{\"md5\": \"{}\", \"relpath\": {}}}",
            hashes.md5,
            python_string(relative)
        ));
        ours.update((relative.len() as u64).to_le_bytes());
        ours.update(relative.as_bytes());
        ours.update(hashes.sha256);
    }
    listing.push(']');
    let md5 = format!("{}.dir", hex(&Md5::digest(listing.as_bytes())));
    let size = hashed.iter().map(|hashes| hashes.size).sum();
    Ok((md5, Sha256(ours.finalize().into()), size, hashed.len() as u64))
}

fn of_file(path: &Path) -> io::Result<Hashes> {
    let mut file = File::open(path)?;
    let (mut md5, mut sha256, mut size) = (Md5::new(), Sha256State::new(), 0);
    let mut block = vec![0; BLOCK_LEN];
    loop {
        let len = match file.read(&mut block) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        md5.update(&block[..len]);
        sha256.update(&block[..len]);
        size += len as u64;
    }
    Ok(Hashes { md5: hex(&md5.finalize()), sha256: sha256.finalize().into(), size })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A string as Python's `json.dumps` writes it: all but printable ASCII as UTF-16 escapes.
fn python_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            c => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_written_as_python_does() {
        // json.dumps('é "😀\x7f\x01\\\n/')
        assert_eq!(python_string("é \"😀\x7f\u{1}\\\n/"), r#""\u00e9 \"\ud83d\ude00\u007f\u0001\\\n/""#);
    }
}
