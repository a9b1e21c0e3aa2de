//! The files of a model version: where they lie, and a copy of them through the tracking server's artifact proxy.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use weighlock_protocol::manifest::path_is_safe;

use super::{Client, Found};
use crate::error::{Error, Result};

/// Files of one model.
const FILES_MAX: usize = 10_000;
/// Directories in one another.
const DEPTH_MAX: usize = 16;
/// Bytes of one model.
const BYTES_MAX: u64 = 4 << 40;
/// Bytes read at once.
const BLOCK_BYTES: usize = 1 << 20;
/// Where the proxy's files lie below a server's address.
const PROXY: &str = "/api/2.0/mlflow-artifacts/artifacts/";

/// One file to fetch: its path below the model, and its length.
struct Remote {
    path: String,
    size: u64,
}

#[derive(Deserialize)]
struct Uri {
    artifact_uri: String,
}

#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    files: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    path: String,
    #[serde(default)]
    is_dir: bool,
    #[serde(default)]
    file_size: Value,
}

/// Brings the files of a model version to `into`, and answers the directory that holds them: `into`, or a directory of
/// this machine where they lie already. `progress` hears bytes done and in all.
///
/// # Errors
/// They lie where this cannot read; there are none, too many, or too large ones; the server does not answer; the disk
/// is full; a name is not safe.
pub(crate) fn download(
    client: &Client,
    found: &Found,
    into: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<PathBuf> {
    let version = &found.version;
    let query = [("name", version.name.as_str()), ("version", version.version.as_str())];
    let uri: Uri = client.get("mlflow/model-versions/get-download-uri", &query)?;
    let root = match place(&uri.artifact_uri, &client.server.base)? {
        Place::Here(path) => return Ok(path),
        Place::Proxy(root) => root,
    };
    let mut files = Vec::new();
    list(client, &root, "", 0, &mut files)?;
    let total = files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.size)).unwrap_or(u64::MAX);
    if files.is_empty() {
        return Err(Error::not_found(format!("MLflow has no files at {}", uri.artifact_uri))
            .hint("give PATH, the directory or file to add"));
    }
    if total > BYTES_MAX {
        return Err(Error::invalid(format!(
            "{total} bytes at {} are more than {BYTES_MAX}",
            uri.artifact_uri
        )));
    }
    let mut done = 0;
    for file in &files {
        fetch(client, &root, file, into, &mut |more| {
            done += more;
            progress(done, total);
        })?;
    }
    Ok(into.to_owned())
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A path of this machine.
    Here(PathBuf),
    /// Below the proxy's root.
    Proxy(String),
}

/// Where an artifact address leads.
pub(super) fn place(uri: &str, base: &str) -> Result<Place> {
    let below = |path: &str| {
        let path = path.trim_matches('/');
        let is_safe = path_is_safe(path);
        is_safe
            .then(|| Place::Proxy(path.to_owned()))
            .ok_or_else(|| Error::invalid(format!("MLflow names {uri:?}, which is no path of artifacts")))
    };
    if let Some(rest) = uri.strip_prefix("mlflow-artifacts:") {
        return match rest.strip_prefix("//") {
            None => below(rest),
            Some(rest) => {
                let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
                if !host.is_empty()
                    && base.split("://").nth(1).is_none_or(|base| base.split('/').next() != Some(host))
                {
                    return Err(Error::invalid(format!("the artifacts lie on another server, {host}"))
                        .hint("download them there and give the directory as PATH"));
                }
                below(path)
            }
        };
    }
    if let Some(rest) = uri.strip_prefix(base).and_then(|rest| rest.strip_prefix(PROXY)) {
        return below(rest);
    }
    let local = uri.strip_prefix("file://").or(uri.starts_with('/').then_some(uri));
    if let Some(path) = local {
        let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned();
        let path = PathBuf::from(path.strip_prefix("localhost").unwrap_or(&path));
        // A server elsewhere must not choose which files of this machine are added.
        if is_here(base) && path.is_absolute() && path.exists() {
            return Ok(Place::Here(path));
        }
        return Err(Error::not_found(format!(
            "the artifacts lie at {} on the disk of MLflow's own machine",
            path.display()
        ))
        .hint("a server with --artifacts-destination gives them to others; or give the directory as PATH"));
    }
    Err(Error::invalid(format!("the artifacts lie at {uri:?}, which this command does not read"))
        .hint("fetch them with `mlflow artifacts download --artifact-uri`, and give the directory as PATH"))
}

/// Whether a server's address is one of this machine.
fn is_here(base: &str) -> bool {
    let authority = base.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let has_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let host =
        authority.rsplit_once(':').filter(|(_, port)| has_port(port)).map_or(authority, |(host, _)| host);
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn list(client: &Client, root: &str, below: &str, depth: usize, files: &mut Vec<Remote>) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(Error::invalid(format!("MLflow's files lie deeper than {DEPTH_MAX} directories")));
    }
    let at = if below.is_empty() { root.to_owned() } else { format!("{root}/{below}") };
    let listing: Listing = client.get("mlflow-artifacts/artifacts", &[("path", &at)])?;
    for listed in listing.files {
        let path = if below.is_empty() { listed.path } else { format!("{below}/{}", listed.path) };
        if !path_is_safe(&path) || path.chars().any(char::is_control) {
            return Err(Error::invalid(format!("MLflow names a file {path:?}, which is not safe to write")));
        }
        if listed.is_dir {
            list(client, root, &path, depth + 1, files)?;
            continue;
        }
        if files.len() >= FILES_MAX {
            return Err(Error::invalid(format!("MLflow has more than {FILES_MAX} files there")));
        }
        // Numbers of 64 bits may come as text.
        let size = match &listed.file_size {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        };
        let size =
            size.ok_or_else(|| Error::invalid(format!("MLflow does not say how large {path:?} is")))?;
        files.push(Remote { path, size });
    }
    Ok(())
}

fn fetch(client: &Client, root: &str, file: &Remote, into: &Path, grown: &mut dyn FnMut(u64)) -> Result<()> {
    let target = into.join(&file.path);
    let fail = |e: io::Error| {
        Error::unavailable(format!("cannot write {}: {e}", target.display()))
            .hint("TMPDIR names another place")
    };
    if let Some(dir) = target.parent() {
        fs::create_dir_all(dir).map_err(fail)?;
    }
    // A file that exists was listed twice.
    let mut out = File::create_new(&target).map_err(fail)?;
    // One byte more than it should have, so that too much is noticed.
    let mut body = client.file(&format!("{root}/{}", file.path))?.take(file.size.saturating_add(1));
    let mut block = vec![0; BLOCK_BYTES];
    let mut size = 0;
    loop {
        let n = body.read(&mut block).map_err(|e| {
            Error::unavailable(format!(
                "MLflow broke off in {:?} after {size} of {} bytes: {e}",
                file.path, file.size
            ))
            .hint("try again")
        })?;
        if n == 0 {
            break;
        }
        out.write_all(&block[..n]).map_err(fail)?;
        size += n as u64;
        grown(n as u64);
    }
    if size != file.size {
        return Err(Error::integrity(format!(
            "MLflow said that {:?} has {} bytes, and sent {}",
            file.path,
            file.size,
            if size > file.size { "more".to_owned() } else { size.to_string() }
        ))
        .hint("try again"));
    }
    Ok(())
}
