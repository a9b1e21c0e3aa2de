//! Reports and samples, ours and those of lm-evaluation-harness, up to a verdict over them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weighlock_protocol::gate::{lm_eval, ours};

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 3 {
        0 => {
            let _ = ours::read(bytes);
        }
        1 => {
            let _ = ours::read_samples(bytes);
        }
        _ => {
            // Results, then files of samples, parted by a zero byte. The first line of a file of samples is its name.
            let mut parts = bytes.split(|byte| *byte == 0);
            let results = parts.next().unwrap_or_default();
            let samples: Vec<(String, Vec<u8>)> = parts
                .take(4)
                .map(|part| {
                    let at = part.iter().position(|byte| *byte == b'\n').unwrap_or(part.len());
                    (String::from_utf8_lossy(&part[..at]).into_owned(), part[at..].to_vec())
                })
                .collect();
            if lm_eval::read(results, &samples).is_ok() {
                assert!(lm_eval::is_lm_eval(results));
            }
        }
    }
});
