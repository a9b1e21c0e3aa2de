//! What the bytes of a tensor stand for: element types, GGUF block types, and how they read as numbers.

use half::slice::HalfFloatSliceExt;

use super::blocks;

/// Elements that are read at a time. A multiple of every block, small enough for the first caches.
pub(super) const RUN_ELEMENTS: usize = 2048;

/// How a type lays out its elements and reads them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Elements per block; 1 for plain numbers.
    pub(super) block_elements: u64,
    /// Bytes per block.
    pub(super) block_bytes: u64,
    /// Reads whole blocks: as many elements as the second slice takes, at most [`RUN_ELEMENTS`].
    pub(super) read: fn(&[u8], &mut [f64]),
    /// Integers that a double cannot hold exactly.
    pub(super) wide: Option<Wide>,
}

/// Integers of 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wide {
    Signed,
    Unsigned,
}

/// The layout of a type by the name that safetensors or ggml gives it; `None` for one whose elements are not read.
pub(super) fn layout(dtype: &str) -> Option<Layout> {
    let plain = |block_bytes, read| Layout { block_elements: 1, block_bytes, read, wide: None };
    let block = |block_elements, block_bytes, read| Layout { block_elements, block_bytes, read, wide: None };
    Some(match dtype {
        "F64" => plain(8, |from, to| numbers(from, to, f64::from_le_bytes)),
        "F32" => plain(4, |from, to| numbers(from, to, |b| f64::from(f32::from_le_bytes(b)))),
        "F16" => plain(2, f16),
        "BF16" => plain(2, |from, to| numbers(from, to, bf16)),
        "F8_E4M3" => plain(1, |from, to| table(from, to, &E4M3)),
        "F8_E5M2" => plain(1, |from, to| table(from, to, &E5M2)),
        "F8_E4M3FNUZ" => plain(1, |from, to| table(from, to, &E4M3FNUZ)),
        "F8_E5M2FNUZ" => plain(1, |from, to| table(from, to, &E5M2FNUZ)),
        "F8_E8M0" => plain(1, |from, to| table(from, to, &E8M0)),
        "I8" => plain(1, |from, to| numbers(from, to, |b| f64::from(i8::from_le_bytes(b)))),
        "I16" => plain(2, |from, to| numbers(from, to, |b| f64::from(i16::from_le_bytes(b)))),
        "I32" => plain(4, |from, to| numbers(from, to, |b| f64::from(i32::from_le_bytes(b)))),
        "U8" | "BOOL" => plain(1, |from, to| numbers(from, to, |[b]: [u8; 1]| f64::from(b))),
        "U16" => plain(2, |from, to| numbers(from, to, |b| f64::from(u16::from_le_bytes(b)))),
        "U32" => plain(4, |from, to| numbers(from, to, |b| f64::from(u32::from_le_bytes(b)))),
        "I64" => Layout {
            wide: Some(Wide::Signed),
            ..plain(8, |from, to| numbers(from, to, |b| i64::from_le_bytes(b) as f64))
        },
        "U64" => Layout {
            wide: Some(Wide::Unsigned),
            ..plain(8, |from, to| numbers(from, to, |b| u64::from_le_bytes(b) as f64))
        },
        "Q4_0" => block(32, 18, blocks::q4_0),
        "Q4_1" => block(32, 20, blocks::q4_1),
        "Q5_0" => block(32, 22, blocks::q5_0),
        "Q5_1" => block(32, 24, blocks::q5_1),
        "Q8_0" => block(32, 34, blocks::q8_0),
        "Q2_K" => block(256, 84, blocks::q2_k),
        "Q3_K" => block(256, 110, blocks::q3_k),
        "Q4_K" => block(256, 144, blocks::q4_k),
        "Q5_K" => block(256, 176, blocks::q5_k),
        "Q6_K" => block(256, 210, blocks::q6_k),
        _ => return None,
    })
}

impl Layout {
    /// Bytes of so many elements, which are whole blocks.
    pub(super) fn bytes(&self, elements: u64) -> u64 {
        elements / self.block_elements * self.block_bytes
    }
}

fn numbers<const N: usize>(from: &[u8], to: &mut [f64], read: impl Fn([u8; N]) -> f64) {
    for (bytes, number) in from.as_chunks().0.iter().zip(to) {
        *number = read(*bytes);
    }
}

fn table(from: &[u8], to: &mut [f64], values: &[f64; 256]) {
    for (byte, number) in from.iter().zip(to) {
        *number = values[usize::from(*byte)];
    }
}

/// The upper half of an F32.
fn bf16(bytes: [u8; 2]) -> f64 {
    f64::from(f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16))
}

fn f16(from: &[u8], to: &mut [f64]) {
    let (mut halves, mut singles) = ([half::f16::ZERO; RUN_ELEMENTS], [0f32; RUN_ELEMENTS]);
    let count = to.len().min(RUN_ELEMENTS);
    for (bytes, number) in from.as_chunks().0.iter().zip(&mut halves) {
        *number = half::f16::from_le_bytes(*bytes);
    }
    halves[..count].convert_to_f32_slice(&mut singles[..count]);
    for (single, number) in singles.iter().zip(to) {
        *number = f64::from(*single);
    }
}

/// What the highest exponent and the negative zero of an 8-bit float mean.
#[derive(PartialEq, Eq)]
enum Specials {
    /// Infinity and not-a-number, as IEEE 754 has them.
    Ieee,
    /// No infinity; all bits set is not a number (OCP E4M3).
    Finite,
    /// No infinity and no negative zero: its bits are the one not-a-number.
    Unsigned,
}

static E4M3: [f64; 256] = floats(3, 7, &Specials::Finite);
static E5M2: [f64; 256] = floats(2, 15, &Specials::Ieee);
static E4M3FNUZ: [f64; 256] = floats(3, 8, &Specials::Unsigned);
static E5M2FNUZ: [f64; 256] = floats(2, 16, &Specials::Unsigned);
static E8M0: [f64; 256] = scales();

/// All values of an 8-bit float type (OCP 8-bit floating point specification 1.0; FNUZ as in LLVM's APFloat).
const fn floats(mantissa_bits: u32, bias: i32, specials: &Specials) -> [f64; 256] {
    let mut values = [0.0; 256];
    let exponent_max: i32 = 0x7f >> mantissa_bits;
    let mut bits = 0;
    while bits < 256 {
        let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
        let exponent = ((bits & 0x7f) >> mantissa_bits) as i32;
        let mantissa = (bits & ((1 << mantissa_bits) - 1)) as f64;
        let full = (1 << mantissa_bits) as f64;
        let finite = if exponent == 0 {
            mantissa / full * power_of_two(1 - bias)
        } else {
            (1.0 + mantissa / full) * power_of_two(exponent - bias)
        };
        values[bits] = match specials {
            Specials::Ieee if exponent == exponent_max && mantissa == 0.0 => sign * f64::INFINITY,
            Specials::Ieee if exponent == exponent_max => f64::NAN,
            Specials::Finite if bits & 0x7f == 0x7f => f64::NAN,
            Specials::Unsigned if bits == 0x80 => f64::NAN,
            _ => sign * finite,
        };
        bits += 1;
    }
    values
}

/// All values of E8M0, the powers of two that scale blocks (OCP microscaling formats 1.0).
const fn scales() -> [f64; 256] {
    let mut values = [f64::NAN; 256];
    let mut bits = 0;
    while bits < 255 {
        values[bits] = power_of_two(bits as i32 - 127);
        bits += 1;
    }
    values
}

const fn power_of_two(exponent: i32) -> f64 {
    let (mut value, mut left) = (1.0, exponent.abs());
    while left > 0 {
        value *= if exponent < 0 { 0.5 } else { 2.0 };
        left -= 1;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::ggml;

    fn read(dtype: &str, bytes: &[u8]) -> Vec<f64> {
        let layout = layout(dtype).expect("known");
        let mut out = vec![0.0; bytes.len() / layout.block_bytes as usize * layout.block_elements as usize];
        (layout.read)(bytes, &mut out);
        out
    }

    #[test]
    fn plain_numbers_read_as_they_are() {
        assert_eq!(read("F64", &1.5f64.to_le_bytes()), [1.5]);
        assert_eq!(
            read("F32", &[2.5f32.to_le_bytes(), (-0.1f32).to_le_bytes()].concat()),
            [2.5, f64::from(-0.1f32)]
        );
        assert_eq!(
            read("F16", &[0x00, 0x3c, 0x01, 0x00, 0x00, 0xfc]),
            [1.0, 2f64.powi(-24), f64::NEG_INFINITY]
        );
        assert!(read("F16", &[0x01, 0x7c])[0].is_nan());
        assert_eq!(read("BF16", &[0x80, 0x3f, 0x20, 0xc1]), [1.0, -10.0]);
        assert_eq!(read("I8", &[0xff, 0x80]), [-1.0, -128.0]);
        assert_eq!(read("U8", &[0xff]), [255.0]);
        assert_eq!(read("BOOL", &[0, 1]), [0.0, 1.0]);
        assert_eq!(read("I16", &(-2i16).to_le_bytes()), [-2.0]);
        assert_eq!(read("U16", &65_535u16.to_le_bytes()), [65_535.0]);
        assert_eq!(read("I32", &i32::MIN.to_le_bytes()), [-2_147_483_648.0]);
        assert_eq!(read("U32", &u32::MAX.to_le_bytes()), [4_294_967_295.0]);
        assert_eq!(read("I64", &(-3i64).to_le_bytes()), [-3.0]);
        assert_eq!(read("U64", &7u64.to_le_bytes()), [7.0]);
        assert!(layout("IQ2_XXS").is_none() && layout("F4").is_none());
    }

    #[test]
    fn eight_bit_floats_have_the_extremes_that_their_specifications_give() {
        // Largest and smallest subnormal of each, one, and what is not a number.
        assert_eq!(read("F8_E4M3", &[0x7e, 0x01, 0x38, 0x80]), [448.0, 2f64.powi(-9), 1.0, 0.0]);
        assert!(read("F8_E4M3", &[0x7f, 0xff]).iter().all(|value| value.is_nan()));
        assert_eq!(
            read("F8_E5M2", &[0x7b, 0x01, 0x3c, 0xfc]),
            [57344.0, 2f64.powi(-16), 1.0, f64::NEG_INFINITY]
        );
        assert!(read("F8_E5M2", &[0x7d, 0x7e, 0xff]).iter().all(|value| value.is_nan()));
        assert_eq!(read("F8_E4M3FNUZ", &[0x7f, 0x01, 0x40]), [240.0, 2f64.powi(-10), 1.0]);
        assert_eq!(read("F8_E5M2FNUZ", &[0x7f, 0x01, 0x40]), [57344.0, 2f64.powi(-17), 1.0]);
        assert!(read("F8_E4M3FNUZ", &[0x80])[0].is_nan() && read("F8_E5M2FNUZ", &[0x80])[0].is_nan());
        assert_eq!(read("F8_E8M0", &[127, 0, 254]), [1.0, 2f64.powi(-127), 2f64.powi(127)]);
        assert!(read("F8_E8M0", &[255])[0].is_nan());
    }

    #[test]
    fn blocks_are_as_long_as_the_reader_of_gguf_says() {
        let mut known = 0;
        for kind in (0..64).filter_map(ggml::tensor_type) {
            let Some(layout) = layout(kind.name) else { continue };
            known += 1;
            assert_eq!(
                (layout.block_elements, layout.block_bytes),
                (kind.block_elements, kind.block_bytes),
                "{kind:?}"
            );
            assert_eq!(RUN_ELEMENTS as u64 % layout.block_elements, 0);
        }
        assert_eq!(known, 18);
    }
}
