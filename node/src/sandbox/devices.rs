//! Which devices an evaluator may use: the common ones, what every user of the host may use, and accelerators.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::message::Setup;

/// More than this many are not looked at.
const DEVICES_MAX: usize = 4096;
/// How deep below /dev accelerators lie: `nvidia-caps/nvidia-cap1`, `dri/by-path/...`.
const DEPTH_MAX: usize = 2;

/// How the names of accelerators begin, below /dev.
const ACCELERATORS: &[&str] =
    &["nvidia", "dri/", "kfd", "accel", "neuron", "hl", "davinci", "hisi_hdc", "devmm_svm", "dxg", "apex_"];
/// Terminals: the evaluator has none.
const TERMINALS: &[&str] = &["tty", "ptmx", "console", "pts/"];

/// The devices that are there, those of the user's own choice included.
pub(super) fn usable(setup: &Setup) -> Vec<PathBuf> {
    let mut found = Vec::new();
    visit(Path::new("/dev"), 0, &mut found);
    found.extend(setup.devices.iter().cloned());
    found.sort();
    found.dedup();
    found
}

fn visit(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if found.len() >= DEVICES_MAX {
            return;
        }
        let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
        if meta.is_dir() && depth < DEPTH_MAX {
            visit(&path, depth + 1, found);
        } else if meta.file_type().is_char_device() && is_usable(&path, meta.mode()) {
            found.push(path);
        }
    }
}

fn is_usable(path: &Path, mode: u32) -> bool {
    let Some(name) = path.strip_prefix("/dev").ok().and_then(Path::to_str) else { return false };
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    let everybody = mode & 0o006 == 0o006;
    !begins(TERMINALS) && (everybody || begins(ACCELERATORS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accelerators_are_usable_and_disks_memory_and_terminals_are_not() {
        for (path, mode, expected) in [
            ("/dev/null", 0o666, true),
            ("/dev/nvidia0", 0o660, true),
            ("/dev/nvidia-caps/nvidia-cap1", 0o400, true),
            ("/dev/dri/renderD128", 0o660, true),
            ("/dev/kfd", 0o660, true),
            ("/dev/accel/accel0", 0o660, true),
            ("/dev/mem", 0o640, false),
            ("/dev/kmsg", 0o644, false),
            ("/dev/tty", 0o666, false),
            ("/dev/ptmx", 0o666, false),
            ("/dev/loop-control", 0o660, false),
        ] {
            assert_eq!(is_usable(Path::new(path), mode), expected, "{path}");
        }
    }
}
