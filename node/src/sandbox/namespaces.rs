//! The namespaces of a run: whose ids they map, and the loopback of an empty network.

use std::fs;
use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{getegid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set, set_capabilities,
};

/// Enters a user namespace that has no maps yet. The process must have one thread.
pub(super) fn new_user() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWUSER)?)
}

/// From here on children of this process live in a PID namespace of their own, the first as its init.
pub(super) fn new_pid() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWPID)?)
}

/// Enters mount and IPC namespaces of its own.
pub(super) fn new_mount() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC)?)
}

/// Enters an empty network, with 127.0.0.1 and ::1 in it: test servers and process groups of the evaluator use them.
pub(super) fn new_net() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    loopback_up()
}

/// Gives `process` a map of every id that this namespace has onto itself. Files keep their owners then, so that the
/// superuser still reads what belongs to others. Needs CAP_SETUID.
pub(super) fn map_all(process: u32) -> io::Result<()> {
    for kind in ["uid_map", "gid_map"] {
        let own = fs::read_to_string(format!("/proc/self/{kind}"))?;
        let mut map = String::new();
        for line in own.lines() {
            let mut fields = line.split_ascii_whitespace();
            if let (Some(id), _, Some(count)) = (fields.next(), fields.next(), fields.next()) {
                map.push_str(&format!("{id} {id} {count}\n"));
            }
        }
        // One write: the kernel takes a map whole or not at all.
        fs::write(format!("/proc/{process}/{kind}"), map)?;
    }
    Ok(())
}

/// The ids of this process as they are outside of the namespace that it will enter.
pub(super) fn own_ids() -> (u32, u32) {
    (geteuid().as_raw(), getegid().as_raw())
}

/// Maps one user and one group onto themselves, which everybody may do for a namespace of his own.
pub(super) fn map_self((uid, gid): (u32, u32)) -> io::Result<()> {
    let own = Path::new("/proc/self");
    fs::write(own.join("setgroups"), "deny")?;
    fs::write(own.join("uid_map"), format!("{uid} {uid} 1"))?;
    fs::write(own.join("gid_map"), format!("{gid} {gid} 1"))
}

/// Keeps this process's capabilities over the next exec, which drops them for everybody but the superuser.
pub(super) fn keep_capabilities() -> io::Result<()> {
    let held = capabilities(None)?;
    set_capabilities(None, CapabilitySets { inheritable: held.permitted, ..held })?;
    for bit in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        if held.permitted.contains(bit) {
            configure_capability_in_ambient_set(bit, true)?;
        }
    }
    Ok(())
}

/// Brings `lo` up: one RTM_NEWLINK request, see rtnetlink(7).
fn loopback_up() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const NLMSG_ERROR: u16 = 2;
    const IFF_UP: u32 = 1;
    const LOOPBACK_INDEX: i32 = 1;
    const LENGTH: u32 = 32;

    let mut request = Vec::with_capacity(LENGTH as usize);
    // nlmsghdr: length, type, flags, sequence number, port.
    request.extend(LENGTH.to_ne_bytes());
    request.extend(RTM_NEWLINK.to_ne_bytes());
    request.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    request.extend([0; 8]);
    // ifinfomsg: family, padding, device type, index, flags, which of the flags change.
    request.extend([0; 4]);
    request.extend(LOOPBACK_INDEX.to_ne_bytes());
    request.extend(IFF_UP.to_ne_bytes());
    request.extend(IFF_UP.to_ne_bytes());

    // Protocol 0 is NETLINK_ROUTE.
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    rustix::net::sendto(&socket, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 1024];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    // nlmsgerr: behind the header a negated errno, zero for an acknowledgement.
    if length < 20 || answer[4..6] != NLMSG_ERROR.to_ne_bytes() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "netlink did not answer the request"));
    }
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}
