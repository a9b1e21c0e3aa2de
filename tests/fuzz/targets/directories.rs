//! Directories of a checkpoint: the small files around weights, DVC files, indexes. Planned, nothing is copied.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use weighlock_cache::inspect::{Options, dvc, plan};

/// Files that the input may fill, by its first byte of each part.
const NAMES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "adapter_config.json",
    "data.dvc",
    "dvc.lock",
];

fuzz_target!(|input: &[u8]| {
    let dir = tempfile::Builder::new().prefix("wl-fuzz-").tempdir_in(place()).expect("a directory");
    for part in input.split(|byte| *byte == 0).take(6) {
        let Some((name, bytes)) = part.split_first() else { continue };
        fs::write(dir.path().join(NAMES[usize::from(*name) % NAMES.len()]), bytes).expect("written");
    }
    // The least weights file that there is.
    fs::write(dir.path().join("model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").expect("written");
    if let Ok(plan) = plan(dir.path(), &Options::default()) {
        let _ = format!("{plan:?}");
    }
    for name in ["data.dvc", "dvc.lock"] {
        let _ = dvc::read(&dir.path().join(name));
    }
});

/// Memory, where the system has such a place.
fn place() -> std::path::PathBuf {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}
