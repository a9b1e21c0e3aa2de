//! The hardware key of this host: vendor and architecture of its accelerator, or of its CPU.

/// `nvidia/sm_90` and the like where a GPU answers, else `cpu/x86-64-v1` to `-v4`, `cpu/aarch64`, ...
pub fn detect() -> String {
    gpu().unwrap_or_else(|| format!("cpu/{}", cpu()))
}

/// Through NVML, which the NVIDIA driver installs. Where there are several kinds the first counts; the
/// configuration key `hardware` overrides it.
fn gpu() -> Option<String> {
    let nvml = nvml_wrapper::Nvml::init().ok()?;
    let capability = nvml.device_by_index(0).ok()?.cuda_compute_capability().ok()?;
    Some(format!("nvidia/sm_{}{}", capability.major, capability.minor))
}

/// Levels as the x86-64 psABI names them.
#[cfg(target_arch = "x86_64")]
fn cpu() -> &'static str {
    macro_rules! all {
        ($($feature:tt),*) => { true $(&& std::arch::is_x86_feature_detected!($feature))* };
    }
    let v2 = all!("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cmpxchg16b");
    let v3 = v2 && all!("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe");
    let v4 = v3 && all!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl");
    match (v4, v3, v2) {
        (true, ..) => "x86-64-v4",
        (_, true, _) => "x86-64-v3",
        (_, _, true) => "x86-64-v2",
        _ => "x86-64-v1",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu() -> &'static str {
    std::env::consts::ARCH
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_key_has_a_vendor_and_an_architecture() {
        let key = super::detect();
        assert_eq!(key.split('/').count(), 2, "{key}");
    }
}
