//! GGUF block types as numbers, computed in single precision as ggml does.

use half::f16;

pub(super) fn q4_0(from: &[u8], to: &mut [f64]) {
    each::<18, 32>(from, to, |block, out| {
        let scale = single(block, 0);
        for (i, q) in nibbles(&block[2..]) {
            out[i] = scale * (f32::from(q) - 8.0);
        }
    });
}

pub(super) fn q4_1(from: &[u8], to: &mut [f64]) {
    each::<20, 32>(from, to, |block, out| {
        let (scale, least) = (single(block, 0), single(block, 2));
        for (i, q) in nibbles(&block[4..]) {
            out[i] = scale * f32::from(q) + least;
        }
    });
}

pub(super) fn q5_0(from: &[u8], to: &mut [f64]) {
    each::<22, 32>(from, to, |block, out| {
        let (scale, high) = (single(block, 0), &block[2..6]);
        for (i, q) in nibbles(&block[6..]) {
            out[i] = scale * (f32::from(q | fifth(high, i)) - 16.0);
        }
    });
}

pub(super) fn q5_1(from: &[u8], to: &mut [f64]) {
    each::<24, 32>(from, to, |block, out| {
        let (scale, least, high) = (single(block, 0), single(block, 2), &block[4..8]);
        for (i, q) in nibbles(&block[8..]) {
            out[i] = scale * f32::from(q | fifth(high, i)) + least;
        }
    });
}

pub(super) fn q8_0(from: &[u8], to: &mut [f64]) {
    each::<34, 32>(from, to, |block, out| {
        let scale = single(block, 0);
        for (q, out) in block[2..].iter().zip(out) {
            *out = f32::from(q.cast_signed()) * scale;
        }
    });
}

pub(super) fn q2_k(from: &[u8], to: &mut [f64]) {
    each::<84, 256>(from, to, |block, out| {
        let (scales, qs) = (&block[..16], &block[16..80]);
        let (scale, least) = (single(block, 80), single(block, 82));
        for (i, out) in out.iter_mut().enumerate() {
            let q = qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
            let both = scales[i / 16];
            *out = scale * f32::from(both & 15) * f32::from(q) - least * f32::from(both >> 4);
        }
    });
}

pub(super) fn q3_k(from: &[u8], to: &mut [f64]) {
    each::<110, 256>(from, to, |block, out| {
        let (high, qs, packed) = (&block[..32], &block[32..96], &block[96..108]);
        let scale = single(block, 108);
        let scales: [f32; 16] = std::array::from_fn(|i| {
            let low = packed[i % 8] >> (i / 8 * 4) & 15;
            let top = packed[8 + i % 4] >> (i / 4 * 2) & 3;
            scale * (f32::from(low | top << 4) - 32.0)
        });
        for (i, out) in out.iter_mut().enumerate() {
            let low = qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
            // A set bit means that nothing is taken away.
            let less = if high[i % 32] >> (i / 32) & 1 == 0 { 4.0 } else { 0.0 };
            *out = scales[i / 16] * (f32::from(low) - less);
        }
    });
}

pub(super) fn q4_k(from: &[u8], to: &mut [f64]) {
    each::<144, 256>(from, to, |block, out| {
        let (scales, leasts) = scales_k(block);
        let qs = &block[16..];
        for (i, out) in out.iter_mut().enumerate() {
            let q = qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
            *out = scales[i / 32] * f32::from(q) - leasts[i / 32];
        }
    });
}

pub(super) fn q5_k(from: &[u8], to: &mut [f64]) {
    each::<176, 256>(from, to, |block, out| {
        let (scales, leasts) = scales_k(block);
        let (high, qs) = (&block[16..48], &block[48..]);
        for (i, out) in out.iter_mut().enumerate() {
            let low = qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
            let top = high[i % 32] >> (i / 32) & 1;
            *out = scales[i / 32] * f32::from(low | top << 4) - leasts[i / 32];
        }
    });
}

pub(super) fn q6_k(from: &[u8], to: &mut [f64]) {
    each::<210, 256>(from, to, |block, out| {
        let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
        let scale = single(block, 208);
        for (i, out) in out.iter_mut().enumerate() {
            let low = low[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
            let top = high[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
            *out = scale * f32::from(scales[i / 16].cast_signed()) * (f32::from(low | top << 4) - 32.0);
        }
    });
}

/// Reads block after block of `BYTES` bytes and `ELEMENTS` elements.
fn each<const BYTES: usize, const ELEMENTS: usize>(
    from: &[u8],
    to: &mut [f64],
    read: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let mut numbers = [0.0; ELEMENTS];
    for (block, out) in from.as_chunks().0.iter().zip(to.as_chunks_mut::<ELEMENTS>().0) {
        read(block, &mut numbers);
        for (number, out) in numbers.iter().zip(out) {
            *out = f64::from(*number);
        }
    }
}

fn single(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 16 bytes as 32 numbers of four bits: the low halves first, then the high ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = (usize, u8)> {
    let low = bytes.iter().take(16).map(|byte| byte & 15);
    low.chain(bytes.iter().take(16).map(|byte| byte >> 4)).enumerate()
}

/// The fifth bit of number `i`, in its place.
fn fifth(high: &[u8], i: usize) -> u8 {
    (high[i / 8] >> (i % 8) & 1) << 4
}

/// Scales and minima of Q4_K and Q5_K: eight each, of six bits, in twelve bytes behind two F16 that scale them.
fn scales_k(block: &[u8]) -> ([f32; 8], [f32; 8]) {
    let (scale, least, packed) = (single(block, 0), single(block, 2), &block[4..16]);
    let scales = std::array::from_fn(|i| {
        let six = if i < 4 { packed[i] & 63 } else { packed[i + 4] & 15 | packed[i - 4] >> 2 & 48 };
        scale * f32::from(six)
    });
    let leasts = std::array::from_fn(|i| {
        let six = if i < 4 { packed[i + 4] & 63 } else { packed[i + 4] >> 4 | packed[i] >> 2 & 48 };
        least * f32::from(six)
    });
    (scales, leasts)
}

#[cfg(test)]
mod tests {
    use weighlock_protocol::LayerId;

    use crate::diff::element::layout;

    /// Eight blocks of bytes from a simple rule; where a scale stands, an F16 between 1 and 2.
    fn blocks(block_bytes: usize, scales: &[usize]) -> Vec<u8> {
        let mut state = 1u32;
        let mut bytes: Vec<u8> = (0..8 * block_bytes)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        for block in bytes.chunks_mut(block_bytes) {
            for at in scales {
                block[at + 1] = 0x3c | block[at + 1] & 3;
            }
        }
        bytes
    }

    /// Answers of `gguf.quants.dequantize` of the Python package gguf 0.19: BLAKE3 of the F32 in order, and the first two.
    #[test]
    fn blocks_read_as_the_package_gguf_reads_them() {
        let cases: &[(&str, &[usize], &str, [f64; 2])] = &[
            (
                "Q4_0",
                &[0],
                "52d6dc87a1de3ff808440d77a0cf37bee8658e875fa9c8e273580e1cda40321c",
                [-10.91015625, -6.234375],
            ),
            (
                "Q4_1",
                &[0, 2],
                "3076b746346a687f140fb2827174ebf3f916b8a0de2d0728fc5a1844b228741c",
                [19.8291015625, 22.9462890625],
            ),
            (
                "Q5_0",
                &[0],
                "41f7f94aba2f54ce29fff18dfb6aec1f6135cae6b2d36602c873dd6ef4ce6f35",
                [9.3515625, -3.1171875],
            ),
            (
                "Q5_1",
                &[0, 2],
                "6485ab7e2ae8988fb14b42bd0b461190148e49d2b1231f2810a7fc68b9031dcf",
                [7.3603515625, 5.8017578125],
            ),
            (
                "Q8_0",
                &[0],
                "4dfc3ddee5334294d82594ebf588d444fab4fef10466473fa5b0e0cbe0c6eb36",
                [-197.94140625, -118.453125],
            ),
            (
                "Q2_K",
                &[80, 82],
                "c4ba70c8e77177b8f86abc8ae842612c4c16cea6627db7b5145eca67cff9f9eb",
                [-4.1513671875, 37.5439453125],
            ),
            (
                "Q3_K",
                &[108],
                "7b152f2f19c74f49f7a9a5f175f6c714712ee41ee99f8eba280feec6270e6202",
                [27.521484375, 9.173828125],
            ),
            (
                "Q4_K",
                &[0, 2],
                "c022cf4904861b84bb55d190b5ef956c9a27af334209de496e95bd0a149a253f",
                [219.93359375, 51.60546875],
            ),
            (
                "Q5_K",
                &[0, 2],
                "9dbb1313fb99002dc45f5da5acfab0f6b72e33e68284c4eb454349e203049686",
                [126.41796875, 575.29296875],
            ),
            (
                "Q6_K",
                &[208],
                "2e4dcfae44f85db1a6ddb5171164f4899dc97abb756609e2791f8ba26871c031",
                [-2096.4453125, 149.74609375],
            ),
        ];
        for (dtype, scales, hash, first) in cases {
            let layout = layout(dtype).expect("known");
            let bytes = blocks(layout.block_bytes as usize, scales);
            let mut numbers = vec![0.0; 8 * layout.block_elements as usize];
            (layout.read)(&bytes, &mut numbers);
            assert_eq!(numbers[..2], *first, "{dtype}");
            let singles: Vec<u8> = numbers.iter().flat_map(|number| (*number as f32).to_le_bytes()).collect();
            assert_eq!(LayerId::of(&singles).hex(), *hash, "{dtype}");
        }
    }
}
