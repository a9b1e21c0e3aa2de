//! Headers of weights: safetensors and GGUF, in files longer than what is given.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weighlock_cache::inspect::{InspectConfig, gguf, safetensors};

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    let config = InspectConfig::default();
    // The rest of the file is zeros that nobody reads.
    let len = bytes.len() as u64 + [0, 1, 1 << 12, 1 << 20, 1 << 40][usize::from(kind / 2) % 5];
    if kind % 2 == 0 {
        if let Ok(header) = safetensors::parse(bytes, len, &config) {
            let _ = format!("{header:?}");
        }
    } else if let Ok(header) = gguf::parse(bytes, len, &config) {
        let _ = format!("{header:?}");
    }
});
