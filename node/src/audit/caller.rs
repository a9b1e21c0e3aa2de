//! Who is on the other side of a local socket, as far as the kernel tells.

use std::fs::File;
use std::io::Read as _;

use tokio::net::UnixStream;
use weighlock_protocol::audit::{Caller, TEXT_CHARS_MAX, bounded};

/// Digits of a container's id, and of a pod's uid without its dashes.
const CONTAINER_DIGITS: usize = 64;
const POD_DIGITS: usize = 32;
/// Most that is read of one file of `/proc`: a path for each of a dozen cgroup hierarchies, a few hundred bytes each.
const PROC_BYTES: usize = 16 << 10;

/// The process that connected. Reads `/proc`, which is memory; what is gone already is left out.
pub(crate) fn of(stream: &UnixStream) -> Caller {
    let Ok(cred) = stream.peer_cred() else {
        return Caller::default();
    };
    let pid = cred.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
    let read = |name: &str| pid.and_then(|pid| text(&format!("/proc/{pid}/{name}")));
    let (pod, container) = read("cgroup").map_or((None, None), |text| place(&text));
    Caller {
        uid: Some(cred.uid()),
        gid: Some(cred.gid()),
        pid,
        process: read("comm").map(|name| bounded(name.trim_end(), TEXT_CHARS_MAX)),
        pod,
        container,
        runtime: None,
    }
}

/// A file of `/proc`, at one go: it tells no length, and asking for it in growing pieces takes longer.
fn text(path: &str) -> Option<String> {
    let mut text = String::with_capacity(PROC_BYTES);
    File::open(path).ok()?.take(PROC_BYTES as u64).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The uid of the pod and the id of the container that a `/proc/PID/cgroup` tells of: `pod<uid>` or
/// `...-pod<uid>.slice` with dashes or underscores, and 64 hex digits in the last part of a path.
fn place(cgroups: &str) -> (Option<String>, Option<String>) {
    let (mut pod, mut container) = (None, None);
    for path in cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
        for part in path.split('/') {
            pod = pod.or_else(|| pod_uid(part));
        }
        let last = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
        container = container.or_else(|| container_id(last));
    }
    (pod, container)
}

fn pod_uid(part: &str) -> Option<String> {
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let (before, uid) = part.rsplit_once("pod")?;
    if !(before.is_empty() || before.ends_with('-')) {
        return None;
    }
    let uid = uid.replace('_', "-");
    let digits = uid.chars().filter(|c| *c != '-');
    let is_uid = digits.clone().count() == POD_DIGITS && digits.clone().all(|c| c.is_ascii_hexdigit());
    is_uid.then_some(uid)
}

fn container_id(part: &str) -> Option<String> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let id = part.rsplit(['-', ':']).next()?;
    let is_id = id.len() == CONTAINER_DIGITS && id.bytes().all(|b| b.is_ascii_hexdigit());
    is_id.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_and_containers_are_found_in_the_forms_that_runtimes_write() {
        let id = "0123456789abcdef".repeat(4);
        let uid = "8d2c41a6-9a7c-4a54-8a2e-0f7d8a0c1b2d";
        let underscored = uid.replace('-', "_");
        let found = |text: String| place(&text);
        let both = (Some(uid.to_owned()), Some(id.clone()));
        // systemd driver with cgroup 2 (containerd, CRI-O), cgroupfs driver with cgroup 1.
        for runtime in ["cri-containerd", "crio"] {
            let path = format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{underscored}.slice/{runtime}-{id}.scope\n"
            );
            assert_eq!(found(path), both);
        }
        assert_eq!(found(format!("12:cpu,cpuacct:/kubepods/besteffort/pod{uid}/{id}\n0::/\n")), both);
        // Docker and Podman without Kubernetes.
        let alone = (None, Some(id.clone()));
        assert_eq!(found(format!("0::/system.slice/docker-{id}.scope\n")), alone);
        assert_eq!(found(format!("4:memory:/docker/{id}\n")), alone);
        assert_eq!(found(format!("0::/machine.slice/libpod-{id}.scope\n")), alone);
    }

    #[test]
    fn other_processes_have_neither() {
        for text in [
            "0::/user.slice/user-1000.slice/session-2.scope\n",
            "0::/\n",
            "",
            "0::/system.slice/podman.service\n",
            "0::/kubepods.slice/kubepods-podabc.slice\n",
            "nonsense",
            "0::/a/b/c/0123456789abcdef\n",
        ] {
            assert_eq!(place(text), (None, None), "{text}");
        }
    }

    #[tokio::test]
    async fn a_peer_is_this_process() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let caller = of(&ours);
        assert_eq!(caller.pid, Some(std::process::id()));
        assert_eq!(caller.uid, Some(rustix::process::geteuid().as_raw()));
        assert!(caller.process.is_some_and(|name| !name.is_empty()));
    }
}
