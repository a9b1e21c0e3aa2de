//! Rules on files by Landlock, which also the superuser cannot shed: all may be read, two directories written.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope, path_beneath_rules,
};

/// The newest version whose rights are known here; older kernels enforce those that they know.
const KNOWN: ABI = ABI::V9;

/// Restricts this thread and what it starts.
///
/// # Errors
/// Why nothing is enforced.
pub(super) fn restrict(out: &Path, tmp: &Path, devices: &[PathBuf]) -> Result<(), String> {
    let status = rules(out, tmp, devices).map_err(|e| e.to_string())?;
    match status {
        RulesetStatus::NotEnforced => Err("the kernel does not enforce it".to_owned()),
        _ => Ok(()),
    }
}

fn rules(out: &Path, tmp: &Path, devices: &[PathBuf]) -> Result<RulesetStatus, RulesetError> {
    let read = AccessFs::from_read(KNOWN);
    let no_nodes: BitFlags<AccessFs> = AccessFs::MakeChar | AccessFs::MakeBlock;
    let write = AccessFs::from_all(KNOWN) & !no_nodes;
    let device: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?
        .add_rules(path_beneath_rules(["/"], read))?
        .add_rules(path_beneath_rules([out, tmp, Path::new("/dev/shm"), Path::new("/dev/pts")], write))?
        .add_rules(path_beneath_rules(devices, device))?
        .restrict_self()?;
    Ok(status.ruleset)
}
