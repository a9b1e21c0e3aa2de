//! Whether this machine fits the configuration: what `config check` looks at beside the file.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{Access, access, statfs, statvfs};
use rustix::process::{Resource, getegid, geteuid, getgroups, getrlimit};
use serde::Serialize;
use weighlock_cache::network_fs;

use crate::config::{Config, Dirs};
use crate::keys;
use crate::net::control::ControlLimits;
use crate::{preflight, server};

/// Descriptors for the store, the planes, logs, and files that are being read or written.
const DESCRIPTORS_BASE: u64 = 512;
/// The clock cannot be before this release: 1 November 2026, in seconds since 1970.
const RELEASED: u64 = 1_793_491_200;
/// How far ahead of the clock the store's last write may lie.
const CLOCK_STEP_MAX: Duration = Duration::from_secs(300);

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The daemon starts, and something will not work.
    Warning,
    /// The daemon does not start, or does not work.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub about: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found, and what to do.
    pub text: String,
}

/// Looks at directories, permissions, sockets, limits, the clock and, unless the daemon runs, at the addresses. Changes
/// nothing.
pub fn check(dirs: &Dirs, config: &Config, daemon_runs: bool) -> Vec<Finding> {
    let mut found = vec![
        store(&dirs.data),
        room(&dirs.data, config.limits.free_bytes_min),
        role_keys(&dirs.keys),
        sockets(dirs, config),
        descriptors(config),
        clock(&dirs.data.join("weighlock.redb"), SystemTime::now()),
    ];
    found.push(if daemon_runs {
        finding("addresses", Verdict::Ok, "not tried: the daemon of this store runs")
    } else {
        match preflight::check(dirs, config) {
            Ok(()) => finding("addresses", Verdict::Ok, "free"),
            Err(e) => finding("addresses", Verdict::Warning, e),
        }
    });
    found
}

/// Descriptors that a daemon may need at once: one for each local connection and each connection over TCP, and its own.
pub fn descriptors_needed(config: &Config) -> u64 {
    let control = u64::from(ControlLimits::default().connections_max);
    DESCRIPTORS_BASE + control + config.limits.local_connections_max as u64
}

fn finding(about: &'static str, verdict: Verdict, text: impl ToString) -> Finding {
    Finding { about, verdict, text: text.to_string() }
}

fn store(dir: &Path) -> Finding {
    let about = "store";
    let shown = dir.display();
    let kind = nearest(dir).and_then(|there| statfs(there).ok());
    // The field's type differs by platform; only bits count.
    if let Some(kind) = kind.and_then(|there| network_fs(there.f_type.cast_unsigned())) {
        let text = format!("{shown} lies on {kind}, a network file system; the store must be local");
        return finding(about, Verdict::Error, text);
    }
    if !dir.exists() {
        let Some(parent) = nearest(dir) else {
            return finding(
                about,
                Verdict::Error,
                format!("{shown} cannot be made: nothing above it exists"),
            );
        };
        return match access(parent, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => finding(about, Verdict::Ok, format!("{shown} will be made")),
            Err(e) => finding(
                about,
                Verdict::Error,
                format!(
                    "{shown} cannot be made in {} ({e}); make it for the daemon's user",
                    parent.display()
                ),
            ),
        };
    }
    if !dir.is_dir() {
        return finding(about, Verdict::Error, format!("{shown} is not a directory"));
    }
    if let Err(e) = access(dir, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        return finding(
            about,
            Verdict::Error,
            format!("{shown} cannot be written by this user ({e}); it belongs to the daemon's user"),
        );
    }
    match dir.metadata() {
        Ok(metadata) if metadata.permissions().mode() & 0o022 != 0 => finding(
            about,
            Verdict::Warning,
            format!(
                "{shown} can be written by others (mode {:o}); chmod go-w it",
                metadata.permissions().mode() & 0o7777
            ),
        ),
        Ok(_) => finding(about, Verdict::Ok, shown),
        Err(e) => finding(about, Verdict::Error, format!("{shown}: {e}")),
    }
}

fn room(dir: &Path, free_bytes_min: u64) -> Finding {
    let about = "room";
    let Some(there) = nearest(dir) else {
        return finding(about, Verdict::Error, format!("nothing above {} exists", dir.display()));
    };
    match statvfs(there) {
        Ok(disk) => {
            let (free, size) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
            if size <= free_bytes_min {
                let text =
                    format!("limits.free_bytes_min is {free_bytes_min} and the whole disk has {size} bytes");
                finding(about, Verdict::Error, text)
            } else if free <= free_bytes_min {
                let text = format!(
                    "{free} bytes are free, and limits.free_bytes_min keeps {free_bytes_min} of them"
                );
                finding(about, Verdict::Warning, text)
            } else {
                finding(about, Verdict::Ok, format!("{} bytes for layers", free - free_bytes_min))
            }
        }
        Err(e) => finding(about, Verdict::Error, format!("{}: {e}", there.display())),
    }
}

/// Role keys that others can read rule the cluster for them.
fn role_keys(dir: &Path) -> Finding {
    let about = "role keys";
    for path in keys::below(dir) {
        if let Ok(metadata) = path.metadata()
            && metadata.permissions().mode() & 0o077 != 0
        {
            let text = format!("{} can be read by others; chmod go= it", path.display());
            return finding(about, Verdict::Error, text);
        }
    }
    finding(about, Verdict::Ok, dir.display())
}

fn sockets(dirs: &Dirs, config: &Config) -> Finding {
    let about = "sockets";
    if let Err(e) = dirs.check_sockets() {
        return finding(about, Verdict::Error, e);
    }
    if let Some(name) = &config.sockets.loader_group {
        let group = match server::group_id(name) {
            Ok(group) => group,
            Err(e) => return finding(about, Verdict::Error, e),
        };
        if dirs.sockets.starts_with(&dirs.data) {
            let text =
                "sockets.loader_group has no effect while the sockets lie in the store; set sockets.dir";
            return finding(about, Verdict::Error, text);
        }
        let ours = getegid().as_raw() == group
            || getgroups().is_ok_and(|groups| groups.iter().any(|ours| ours.as_raw() == group));
        if !ours && !geteuid().is_root() {
            let text = format!("this user is not in the group {name}, so it cannot give the socket to it");
            return finding(about, Verdict::Error, text);
        }
    }
    let there = nearest(&dirs.sockets).map(|dir| access(dir, Access::WRITE_OK | Access::EXEC_OK));
    match there {
        Some(Ok(())) => finding(about, Verdict::Ok, dirs.sockets.display()),
        Some(Err(e)) => {
            let text = format!("{} cannot be written by this user ({e})", dirs.sockets.display());
            finding(about, Verdict::Error, text)
        }
        None => finding(about, Verdict::Error, format!("nothing above {} exists", dirs.sockets.display())),
    }
}

fn descriptors(config: &Config) -> Finding {
    let needed = descriptors_needed(config);
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < needed => finding(
            "open files",
            Verdict::Warning,
            format!(
                "{needed} may be needed and the hard limit is {most}; raise it (LimitNOFILE=, ulimit -Hn) or lower limits.local_connections_max"
            ),
        ),
        Some(most) => finding("open files", Verdict::Ok, format!("{needed} of {most}")),
        None => finding("open files", Verdict::Ok, format!("{needed}; no limit")),
    }
}

/// Expiries are judged by the clock.
fn clock(database: &Path, now: SystemTime) -> Finding {
    let about = "clock";
    if now < SystemTime::UNIX_EPOCH + Duration::from_secs(RELEASED) {
        return finding(
            about,
            Verdict::Error,
            "it is before this release was made; set it, nothing would be valid yet",
        );
    }
    let written = database.metadata().and_then(|metadata| metadata.modified());
    match written.ok().and_then(|written| written.duration_since(now).ok()) {
        Some(ahead) if ahead > CLOCK_STEP_MAX => {
            let text = format!("the store was last written {} s in its future; set it", ahead.as_secs());
            finding(about, Verdict::Warning, text)
        }
        _ => finding(about, Verdict::Ok, "after the store's last write"),
    }
}

/// `path`, or what of it exists.
fn nearest(path: &Path) -> Option<&Path> {
    path.ancestors().find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(below: &Path) -> Dirs {
        Dirs { data: below.join("data"), sockets: below.join("data/run"), keys: below.join("keys") }
    }

    #[test]
    fn each_fault_is_found_and_nothing_is_made() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut config = Config::default();
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        (config.listen.control, config.listen.data, config.listen.http) = (any, any, any);
        let dirs = dirs(dir.path());
        let worst = |config: &Config| {
            let found = check(&dirs, config, false);
            found
                .into_iter()
                .filter(|one| one.verdict != Verdict::Ok)
                .map(|one| one.about)
                .collect::<Vec<_>>()
        };
        assert_eq!(worst(&config), [""; 0]);
        assert!(!dirs.data.exists());

        std::fs::create_dir(&dirs.data).expect("made");
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("changed")
        };
        mode(&dirs.data, 0o777);
        assert_eq!(worst(&config), ["store"]);
        mode(&dirs.data, 0o700);

        std::fs::create_dir_all(dirs.keys.join("c")).expect("made");
        let key = dirs.keys.join("c/admin.key");
        std::fs::write(&key, "secret").expect("written");
        mode(&key, 0o644);
        assert_eq!(worst(&config), ["role keys"]);
        mode(&key, 0o600);

        config.limits.free_bytes_min = u64::MAX;
        config.limits.local_connections_max = usize::MAX >> 2;
        config.sockets.loader_group = Some("no-such-group".into());
        assert_eq!(worst(&config), ["room", "sockets", "open files"]);

        let database = dirs.data.join("weighlock.redb");
        std::fs::write(&database, "").expect("written");
        let ago = |s| SystemTime::now() - Duration::from_secs(s);
        assert_eq!(clock(&database, ago(3600)).verdict, Verdict::Warning);
        assert_eq!(clock(&database, SystemTime::now()).verdict, Verdict::Ok);
        assert_eq!(clock(&database, SystemTime::UNIX_EPOCH).verdict, Verdict::Error);
    }
}
