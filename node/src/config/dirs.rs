//! Where one daemon keeps things: its store, its sockets, its keys.

use std::path::{Path, PathBuf};

use super::Config;
use crate::error::{Error, Result};

/// A Unix socket's path must fit in `sockaddr_un` with its final NUL.
const SOCKET_PATH_MAX: usize = 107;

/// Where one daemon keeps things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// The store.
    pub data: PathBuf,
    /// Its sockets.
    pub sockets: PathBuf,
    /// Role keys; outside the store, to be backed up.
    pub keys: PathBuf,
}

impl Dirs {
    /// From flags (or their environment variables), the configuration, and the defaults.
    pub fn new(
        data: Option<PathBuf>,
        sockets: Option<PathBuf>,
        keys: Option<PathBuf>,
        config: &Config,
    ) -> Self {
        let data = data.unwrap_or_else(default_data_dir);
        let sockets = sockets.or_else(|| config.sockets.dir.clone()).unwrap_or_else(|| data.join("run"));
        let keys = keys.unwrap_or_else(default_keys_dir);
        Self { data, sockets, keys }
    }

    /// Socket of the command line.
    pub fn admin_socket(&self) -> PathBuf {
        self.sockets.join("weighlock.sock")
    }

    /// Socket of the loaders.
    pub fn loader_socket(&self) -> PathBuf {
        self.sockets.join("loader.sock")
    }

    /// # Errors
    /// A socket path is longer than the system takes.
    pub fn check_sockets(&self) -> Result<()> {
        let path = self.admin_socket();
        if path.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(Error::invalid(format!(
                "socket path {} is longer than {SOCKET_PATH_MAX} bytes, which is all that the system takes",
                path.display()
            ))
            .hint("give a shorter directory with --socket-dir"));
        }
        Ok(())
    }
}

fn is_service() -> bool {
    rustix::process::geteuid().is_root()
}

fn xdg(variable: &str, fallback: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(dir) if Path::new(&dir).is_absolute() => PathBuf::from(dir),
        _ => PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into())).join(fallback),
    }
}

/// `/var/lib/weighlock` for root, else `$XDG_DATA_HOME/weighlock`.
pub fn default_data_dir() -> PathBuf {
    if is_service() {
        "/var/lib/weighlock".into()
    } else {
        xdg("XDG_DATA_HOME", ".local/share").join("weighlock")
    }
}

/// `/etc/weighlock/config.toml` for root, else `$XDG_CONFIG_HOME/weighlock/config.toml`.
pub fn default_config_path() -> PathBuf {
    if is_service() {
        "/etc/weighlock/config.toml".into()
    } else {
        xdg("XDG_CONFIG_HOME", ".config").join("weighlock/config.toml")
    }
}

/// `/etc/weighlock/keys` for root, else `$XDG_CONFIG_HOME/weighlock/keys`.
pub fn default_keys_dir() -> PathBuf {
    if is_service() {
        "/etc/weighlock/keys".into()
    } else {
        xdg("XDG_CONFIG_HOME", ".config").join("weighlock/keys")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_socket_paths_are_refused_with_a_hint() {
        let data = PathBuf::from(format!("/{}", "d".repeat(120)));
        let dirs = Dirs::new(Some(data), None, Some("/k".into()), &Config::default());
        let error = dirs.check_sockets().expect_err("too long");
        assert!(error.hint.is_some_and(|hint| hint.contains("--socket-dir")));
    }
}
