//! Rights that a process gives up for good: capabilities, and system calls that lead around namespaces and mounts.

use std::collections::BTreeMap;
use std::io;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Refuses any gain of rights by exec, which Landlock and the filter ask for.
pub(super) fn no_new() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Drops every capability. The superuser keeps the one to read files whoever owns them: the model may belong to the
/// daemon's own user.
pub(super) fn drop_capabilities() -> io::Result<()> {
    let held = capabilities(None)?.permitted;
    let kept = if rustix::process::geteuid().is_root() {
        held & CapabilitySet::DAC_READ_SEARCH
    } else {
        CapabilitySet::empty()
    };
    clear_ambient_capability_set()?;
    if held.contains(CapabilitySet::SETPCAP) {
        for bit in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
            if held.contains(bit) && !kept.contains(bit) {
                remove_capability_from_bounding_set(bit)?;
            }
        }
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// Lets nobody of the same user trace this process or take its descriptors.
pub(super) fn close_to_tracers() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Refuses system calls with EPERM from here on. `internet`: sockets of the internet families stay, for a network
/// namespace of its own.
pub(super) fn filter_calls(internet: bool) -> io::Result<()> {
    let wrong = |e: &dyn std::fmt::Display| io::Error::other(e.to_string());
    let program = program(internet).map_err(|e| wrong(&e))?;
    seccompiler::apply_filter(&program).map_err(|e| match e {
        seccompiler::Error::Prctl(e) | seccompiler::Error::Seccomp(e) => e,
        e => wrong(&e),
    })
}

fn program(internet: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let always = [
        // Its rings do what other calls do, sockets among them, past every filter.
        libc::SYS_io_uring_setup,
        // A handle leads to files around any mount.
        libc::SYS_open_by_handle_at,
        // Keyrings are the user's, not the sandbox's.
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
    ];
    rules.extend(always.map(|call| (call, Vec::new())));
    // Families such as AF_VSOCK, which reaches the host from a virtual machine, know no network namespace.
    let mut families = vec![libc::AF_UNIX, libc::AF_NETLINK];
    if internet {
        families.extend([libc::AF_INET, libc::AF_INET6]);
    }
    let none_of = families
        .into_iter()
        .map(|family| {
            let family = u64::from(family.unsigned_abs());
            SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
        })
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(none_of)?]);
    if cfg!(target_arch = "x86_64") {
        // The same calls under the numbers of the x32 ABI.
        const X32: i64 = 0x4000_0000;
        let again: Vec<_> = rules.iter().map(|(call, rule)| (call | X32, rule.clone())).collect();
        rules.extend(again);
    }
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, denied, std::env::consts::ARCH.try_into()?)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles_with_and_without_internet_sockets() {
        let (open, shut) = (program(true).expect("program"), program(false).expect("program"));
        assert!(open.len() > shut.len() && !shut.is_empty());
    }
}
