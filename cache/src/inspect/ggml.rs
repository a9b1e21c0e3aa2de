//! The ggml tables: how many bytes a tensor type takes, and what a GGUF file type is called.

/// How a ggml tensor type lays out its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorType {
    /// Name as ggml gives it (`Q4_1`).
    pub name: &'static str,
    /// Elements per block; 1 for plain numbers.
    pub block_elements: u64,
    /// Bytes per block.
    pub block_bytes: u64,
}

/// The layout of ggml type `id` (ggml.h, `enum ggml_type`), or `None` for ids that are unknown or withdrawn.
pub fn tensor_type(id: u32) -> Option<TensorType> {
    let (name, block_elements, block_bytes) = match id {
        0 => ("F32", 1, 4),
        1 => ("F16", 1, 2),
        2 => ("Q4_0", 32, 18),
        3 => ("Q4_1", 32, 20),
        6 => ("Q5_0", 32, 22),
        7 => ("Q5_1", 32, 24),
        8 => ("Q8_0", 32, 34),
        9 => ("Q8_1", 32, 36),
        10 => ("Q2_K", 256, 84),
        11 => ("Q3_K", 256, 110),
        12 => ("Q4_K", 256, 144),
        13 => ("Q5_K", 256, 176),
        14 => ("Q6_K", 256, 210),
        15 => ("Q8_K", 256, 292),
        16 => ("IQ2_XXS", 256, 66),
        17 => ("IQ2_XS", 256, 74),
        18 => ("IQ3_XXS", 256, 98),
        19 => ("IQ1_S", 256, 50),
        20 => ("IQ4_NL", 32, 18),
        21 => ("IQ3_S", 256, 110),
        22 => ("IQ2_S", 256, 82),
        23 => ("IQ4_XS", 256, 136),
        24 => ("I8", 1, 1),
        25 => ("I16", 1, 2),
        26 => ("I32", 1, 4),
        27 => ("I64", 1, 8),
        28 => ("F64", 1, 8),
        29 => ("IQ1_M", 256, 56),
        30 => ("BF16", 1, 2),
        34 => ("TQ1_0", 256, 54),
        35 => ("TQ2_0", 256, 66),
        39 => ("MXFP4", 32, 17),
        40 => ("NVFP4", 64, 36),
        41 => ("Q1_0", 128, 18),
        _ => return None,
    };
    Some(TensorType { name, block_elements, block_bytes })
}

/// The name of a GGUF `general.file_type` (llama.h, `enum llama_ftype`), or `None` if it is unknown.
/// The bit that says "guessed" (1024) is ignored.
pub fn file_type_name(id: u64) -> Option<&'static str> {
    Some(match id & !1024 {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4_MOE",
        39 => "NVFP4",
        40 => "Q1_0",
        _ => return None,
    })
}

/// Nominal bits per weight of a quantized type or file type by its name; `None` for plain numbers.
pub fn quantized_bits(name: &str) -> Option<u32> {
    let digits = ["IQ", "TQ", "Q", "MXFP", "NVFP"].iter().find_map(|prefix| name.strip_prefix(prefix))?;
    digits.chars().next()?.to_digit(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_bytes_hold_at_least_the_nominal_bits() {
        let mut known = 0;
        for kind in (0..64).filter_map(tensor_type) {
            known += 1;
            let bits = quantized_bits(kind.name).map_or(kind.block_bytes * 8, u64::from);
            let least = bits * kind.block_elements / 8;
            assert!(kind.block_bytes >= least, "{kind:?}");
            assert!(kind.block_bytes <= least * 2, "{kind:?}");
        }
        assert_eq!(known, 34);
    }

    #[test]
    fn bits_come_from_names() {
        assert_eq!(quantized_bits("Q4_K_M"), Some(4));
        assert_eq!(quantized_bits("IQ2_XXS"), Some(2));
        assert_eq!(quantized_bits("MXFP4_MOE"), Some(4));
        assert_eq!(quantized_bits("BF16"), None);
        assert_eq!(quantized_bits("I8"), None);
        assert_eq!(file_type_name(1024 + 3), Some("Q4_1"));
        assert_eq!(file_type_name(5), None);
    }
}
