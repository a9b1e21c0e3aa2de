//! Key files: the host key in the store, role keys outside it; each readable by its owner alone.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use weighlock_protocol::ClusterId;
use weighlock_protocol::statement::Keypair;

use crate::error::{Error, Result};

/// First word of a key file; the seed follows in base64.
const MAGIC: &str = "weighlock-ed25519-v1";

/// The host key of a store, made at the first use.
///
/// # Errors
/// The file cannot be written, is damaged, or is readable by others.
pub fn host_key(data_dir: &Path) -> Result<Keypair> {
    let path = data_dir.join("keys/host.key");
    match load(&path) {
        Err(error) if error.kind == crate::error::Kind::NotFound => {
            let key = generate()?;
            save(&path, &key)?;
            Ok(key)
        }
        loaded => loaded,
    }
}

/// Where the admin key of a cluster lies by default.
pub fn admin_key_path(keys_dir: &Path, cluster: &ClusterId) -> PathBuf {
    keys_dir.join(cluster.short()).join("admin.key")
}

/// Key files in a directory of role keys and in those of its clusters.
pub fn below(keys_dir: &Path) -> Vec<PathBuf> {
    let listed = |dir: &Path| -> Vec<PathBuf> {
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let top = listed(keys_dir);
    let inner = top.iter().filter(|path| path.is_dir()).flat_map(|dir| listed(dir)).collect::<Vec<_>>();
    let mut found: Vec<PathBuf> =
        top.into_iter().chain(inner).filter(|path| path.extension().is_some_and(|e| e == "key")).collect();
    found.sort();
    found
}

/// A fresh key from the system's randomness.
///
/// # Errors
/// The system has none to give.
pub fn generate() -> Result<Keypair> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| Error::internal(format!("no randomness from the system: {e}")))?;
    Ok(Keypair::from_seed(seed))
}

/// Reads a key file.
///
/// # Errors
/// Not there, damaged, or readable by others than its owner.
pub fn load(path: &Path) -> Result<Keypair> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::not_found(format!("no key at {shown}")),
        _ => Error::refused(format!("cannot read key {shown}: {e}")),
    })?;
    let mode = fs::metadata(path).map_err(|e| Error::system(format!("key {shown}"), &e))?.mode();
    if mode & 0o077 != 0 {
        return Err(Error::refused(format!(
            "key {shown} can be read by others (mode {:04o})",
            mode & 0o7777
        ))
        .hint(format!("chmod 600 {shown}")));
    }
    let damaged = || {
        Error::invalid(format!("key file {shown} is damaged"))
            .hint("restore it from a backup; it cannot be made again")
    };
    parse(&text).ok_or_else(damaged)
}

/// The key that the text of a key file holds.
pub fn parse(text: &str) -> Option<Keypair> {
    let seed = BASE64.decode(text.trim().strip_prefix(MAGIC)?.trim().as_bytes()).ok()?;
    Some(Keypair::from_seed(seed.try_into().ok()?))
}

/// Writes a new key file, mode 0600, durably; never over an old one.
///
/// # Errors
/// There is one already, or the disk says no.
pub fn save(path: &Path, key: &Keypair) -> Result<()> {
    let fail = |e: std::io::Error| Error::system(format!("cannot write key {}", path.display()), &e);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
    // Of a name that nobody else has, and mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(fail)?;
    let text = format!("{MAGIC} {}\n", BASE64.encode(&key.seed()));
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(fail)?;
    file.persist_noclobber(path).map_err(|e| fail(e.error))?;
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_made_once_and_guarded() {
        let dir = tempfile::tempdir().expect("tempdir");
        let key = host_key(dir.path()).expect("made");
        assert_eq!(host_key(dir.path()).expect("loaded").key_id(), key.key_id());
        let path = dir.path().join("keys/host.key");
        assert!(save(&path, &generate().expect("key")).is_err(), "an old key was overwritten");
        // Whatever names they have, and whatever lies beside them.
        let (first, second) = (dir.path().join("promoter.new"), dir.path().join("promoter.key"));
        let key = generate().expect("key");
        save(&first, &key).expect("saved");
        assert!(save(&first, &generate().expect("key")).is_err());
        save(&second, &generate().expect("key")).expect("saved");
        assert_eq!(load(&first).expect("there").key_id(), key.key_id());
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 3);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(load(&path).expect_err("readable by all").hint.is_some());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        fs::write(&path, "weighlock-ed25519-v1 AAAA").expect("write");
        assert!(load(&path).expect_err("short").message.contains("damaged"));
    }
}
