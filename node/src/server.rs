//! The local sockets: bound with the right modes, one task per connection.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::config::{Config, Dirs};
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::local::frame;
use crate::local::message::Event;
use crate::shortage::{self, Shortage};
use crate::{admin, loader};

/// Both sockets, removed again on drop.
pub(crate) struct Sockets {
    admin: Bound,
    loader: Bound,
}

struct Bound {
    listener: UnixListener,
    path: PathBuf,
    /// Of this socket alone: loaders never shut out the command line.
    connections: Arc<Semaphore>,
}

impl Sockets {
    /// # Errors
    /// Another daemon listens there, or the directory cannot be used.
    pub(crate) fn bind(dirs: &Dirs, config: &Config) -> Result<Self> {
        std::fs::create_dir_all(&dirs.sockets).map_err(|e| {
            Error::invalid(format!("cannot make the socket directory {}: {e}", dirs.sockets.display()))
        })?;
        let group = config.sockets.loader_group.as_deref().map(group_id).transpose()?;
        let connections = config.limits.local_connections_max;
        let admin = Bound::new(dirs.admin_socket(), 0o600, connections)?;
        let loader = Bound::new(dirs.loader_socket(), 0o660, connections)?;
        if let Some(group) = group {
            if dirs.sockets.starts_with(&dirs.data) {
                return Err(Error::invalid("sockets.loader_group has no effect while the sockets lie in the store, which its group may not enter")
                    .hint("give --socket-dir, for example /run/weighlock"));
            }
            for path in [&dirs.sockets, &loader.path] {
                std::os::unix::fs::chown(path, None, Some(group)).map_err(|e| {
                    Error::refused(format!("cannot give {} to the configured group: {e}", path.display()))
                        .hint("the daemon's user must be in that group (sockets.loader_group)")
                })?;
            }
        }
        Ok(Self { admin, loader })
    }

    /// Accepts until the daemon stops, then waits for the connections.
    pub(crate) async fn serve(self, node: Arc<Node>) {
        let tasks = TaskTracker::new();
        tokio::join!(
            self.admin.accept(&node, &tasks, admin::serve),
            self.loader.accept(&node, &tasks, loader::serve)
        );
        tasks.close();
        tasks.wait().await;
    }
}

/// Whether both sockets can be made, without making them.
///
/// # Errors
/// Another daemon listens there, or something that is no socket lies there.
pub(crate) fn check(dirs: &Dirs) -> Result<()> {
    for path in [dirs.admin_socket(), dirs.loader_socket()] {
        stale(&path)?;
    }
    Ok(())
}

impl Bound {
    fn new(path: PathBuf, mode: u32, connections_max: usize) -> Result<Self> {
        let shown = path.display().to_string();
        remove_stale(&path)?;
        // Bound under another name, so that nobody connects before the mode is right.
        let fresh = path.with_extension("new");
        remove_stale(&fresh)?;
        let fail = |e: std::io::Error| Error::unavailable(format!("cannot make the socket {shown}: {e}"));
        let listener = UnixListener::bind(&fresh).map_err(fail)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(mode)).map_err(fail)?;
        std::fs::rename(&fresh, &path).map_err(fail)?;
        Ok(Self { listener, path, connections: Arc::new(Semaphore::new(connections_max)) })
    }

    async fn accept<F>(&self, node: &Arc<Node>, tasks: &TaskTracker, serve: fn(Arc<Node>, UnixStream) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut descriptors = Shortage::default();
        let mut room = Shortage::default();
        loop {
            let accepted = tokio::select! {
                () = node.stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    if descriptors.failed() {
                        shortage::warn_not_accepted("a local connection", &e);
                    }
                    tokio::time::sleep(shortage::PAUSE).await;
                    continue;
                }
            };
            if let Some(seconds) = descriptors.worked() {
                info!(seconds, "local connections are accepted again");
            }
            match self.connections.clone().try_acquire_owned() {
                Ok(permit) => {
                    if let Some(seconds) = room.worked() {
                        info!(seconds, "there is room for local connections again");
                    }
                    let served = serve(node.clone(), stream);
                    tasks.spawn(async move {
                        let _permit = permit;
                        served.await;
                    });
                }
                Err(_) => self.refuse(&mut room, node.config.limits.local_connections_max, &stream),
            }
        }
    }

    fn refuse(&self, room: &mut Shortage, max: usize, stream: &UnixStream) {
        let socket = self.path.file_name().unwrap_or_default().to_string_lossy();
        if room.failed() {
            warn!(%socket, max, "too many local connections (limits.local_connections_max); refusing more");
        }
        let error = Error::unavailable(format!("{max} connections to {socket} are open, as many as may be"))
            .hint("close some, or raise limits.local_connections_max");
        frame::refuse(stream, &Event::Error(error));
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether a socket lies there that a killed daemon left behind; anything else is not ours to remove.
fn stale(path: &Path) -> Result<bool> {
    use std::os::unix::fs::FileTypeExt;
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Error::unavailable(format!("another daemon listens on {}", path.display()))
            .hint("stop it, or give this one its own --data-dir or --socket-dir"));
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => Ok(true),
        Ok(_) => Err(Error::invalid(format!("{} exists and is not a socket", path.display()))
            .hint("move it away, or give another --socket-dir")),
        Err(_) => Ok(false),
    }
}

fn remove_stale(path: &Path) -> Result<()> {
    if stale(path)? {
        std::fs::remove_file(path).map_err(|e| {
            Error::unavailable(format!("cannot replace the stale socket {}: {e}", path.display()))
        })?;
    }
    Ok(())
}

/// The number of a group, by name (from `/etc/group`) or number.
///
/// # Errors
/// There is none.
pub(crate) fn group_id(name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let find = |line: &str| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1).and_then(|number| number.parse().ok())).flatten()
    };
    groups.lines().find_map(find).ok_or_else(|| {
        Error::invalid(format!("no group is named `{name}` (sockets.loader_group)"))
            .hint("groupadd it, or give its number")
    })
}
