//! Policies from files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use weighlock_protocol::gate::Policy;

use crate::error::{Error, Result};

/// Where a policy is looked for.
pub(crate) const POLICY_FILE: &str = "gate.toml";
/// Largest policy that is read, in bytes.
const POLICY_BYTES_MAX: u64 = 1 << 20;

/// Reads a policy.
///
/// # Errors
/// [`crate::error::Kind::Invalid`]: not there, or not one, with the place.
pub(crate) fn read(path: &Path) -> Result<Policy> {
    read_text(path).map(|(policy, _)| policy)
}

/// As [`read`], with the text.
pub(crate) fn read_text(path: &Path) -> Result<(Policy, String)> {
    let shown = path.display();
    let fail = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Error::invalid(format!("there is no policy at {shown}"))
            .hint("name one with --policy; `weighlock help policy` shows how one looks"),
        _ => Error::invalid(format!("cannot read the policy {shown}: {e}")),
    };
    let mut text = String::new();
    let file = File::open(path).map_err(fail)?;
    file.take(POLICY_BYTES_MAX + 1).read_to_string(&mut text).map_err(fail)?;
    if text.len() as u64 > POLICY_BYTES_MAX {
        return Err(Error::invalid(format!("the policy {shown} has more than {POLICY_BYTES_MAX} bytes")));
    }
    let policy = Policy::parse(&text).map_err(|e| Error::invalid(format!("policy {shown}: {e}")))?;
    Ok((policy, text))
}
