//! Whole comparisons of small files.

mod make;
mod places;

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;

use self::make::*;
use super::*;

fn values(tensor: &TensorDiff) -> (u64, f64, f64) {
    let stats = tensor.stats.expect("compared");
    let values = stats.values.expect("finite");
    (stats.changed, values.max_abs, values.mean_abs)
}

#[test]
fn every_dtype_that_is_read_is_compared_by_its_elements() {
    let cases: &[(&str, Vec<u8>, Vec<u8>, f64)] = &[
        ("F64", 1.0f64.to_le_bytes().into(), 3.0f64.to_le_bytes().into(), 2.0),
        ("F32", 1.0f32.to_le_bytes().into(), 0.5f32.to_le_bytes().into(), 0.5),
        ("F16", vec![0x00, 0x3c], vec![0x00, 0xbc], 2.0),
        ("BF16", vec![0x80, 0x3f], vec![0x00, 0x40], 1.0),
        ("F8_E4M3", vec![0x38], vec![0x7e], 447.0),
        ("F8_E5M2", vec![0x3c], vec![0x40], 1.0),
        ("F8_E4M3FNUZ", vec![0x40], vec![0x00], 1.0),
        ("F8_E5M2FNUZ", vec![0x40], vec![0x44], 1.0),
        ("I8", vec![0xff], vec![1], 2.0),
        ("U8", vec![0], vec![255], 255.0),
        ("BOOL", vec![0], vec![1], 1.0),
        ("I16", (-1i16).to_le_bytes().into(), 1i16.to_le_bytes().into(), 2.0),
        ("U16", 0u16.to_le_bytes().into(), u16::MAX.to_le_bytes().into(), 65_535.0),
        ("I32", i32::MIN.to_le_bytes().into(), i32::MAX.to_le_bytes().into(), 4_294_967_295.0),
        ("U32", 7u32.to_le_bytes().into(), 9u32.to_le_bytes().into(), 2.0),
        ("I64", i64::MAX.to_le_bytes().into(), (i64::MAX - 1).to_le_bytes().into(), 1.0),
        ("U64", u64::MAX.to_le_bytes().into(), (u64::MAX - 3).to_le_bytes().into(), 3.0),
    ];
    for (dtype, a, b, distance) in cases {
        let diff = compare_tensors(&[("t", dtype, &[1], a.clone())], &[("t", dtype, &[1], b.clone())]);
        let tensor = only(&diff);
        assert_eq!((tensor.change, tensor.compared), (Change::Changed, Some(Compared::Elements)), "{dtype}");
        assert_eq!(values(tensor), (1, *distance, *distance), "{dtype}");
    }
}

#[test]
fn types_whose_elements_are_not_read_are_compared_as_bytes() {
    let diff =
        compare_tensors(&[("t", "F4", &[8], vec![1, 2, 3, 4])], &[("t", "F4", &[8], vec![1, 9, 3, 9])]);
    let tensor = only(&diff);
    assert_eq!(tensor.compared, Some(Compared::Bytes));
    let stats = tensor.stats.expect("counted");
    assert_eq!((stats.elements, stats.changed, stats.values), (4, 2, None));
}

#[test]
fn another_dtype_is_compared_by_value_and_another_shape_is_not_compared() {
    let halves = vec![0x00, 0x3c, 0x00, 0x40];
    let diff = compare_tensors(
        &[
            ("kept", "F32", &[2], f32s([1.0, 2.0])),
            ("lost", "F32", &[1], f32s([0.1])),
            ("u", "F32", &[2], f32s([0.0; 2])),
        ],
        &[
            ("kept", "F16", &[2], halves),
            ("lost", "BF16", &[1], vec![0xcd, 0x3d]),
            ("u", "F32", &[1, 2], f32s([0.0; 2])),
        ],
    );
    let [kept, lost, reshaped] = &diff.tensors.differing[..] else { panic!("{diff:?}") };
    assert!(kept.change == Change::Dtype && kept.keeps_values(), "{kept:?}");
    assert!(lost.change == Change::Dtype && !lost.keeps_values(), "{lost:?}");
    assert!((values(lost).1 - 0.000_097_655_5).abs() < 1e-9, "{lost:?}");
    assert_eq!((reshaped.change, reshaped.stats, reshaped.compared), (Change::Shape, None, None));
    let shifts: Vec<_> =
        diff.tensors.dtype_shifts.iter().map(|s| (&s.from[..], &s.to[..], s.tensors)).collect();
    assert_eq!(shifts, [("F32", "BF16", 1), ("F32", "F16", 1)]);
}

#[test]
fn empty_tensors_and_scalars_have_an_outcome_too() {
    let (a, b) = ([("e", "F32", &[0, 3][..], vec![]), ("s", "F32", &[][..], f32s([1.0]))], f32s([2.0]));
    let diff = compare_tensors(&a, &[("e", "F32", &[0, 3], vec![]), ("s", "F32", &[], b)]);
    assert_eq!(diff.tensors.equal, 1);
    assert_eq!(values(only(&diff)), (1, 1.0, 1.0));
    let diff = compare_tensors(&a[..1], &[("e", "F16", &[0, 3], vec![])]);
    assert!(only(&diff).keeps_values());
}

#[test]
fn not_a_number_is_counted_and_the_rest_still_compared() {
    let nan = f32::NAN;
    let a = f32s([nan, 1.0, f32::INFINITY, 2.0]);
    let b = f32s([nan, nan, f32::INFINITY, 2.5]);
    let diff = compare_tensors(&[("t", "F32", &[4], a)], &[("t", "F32", &[4], b)]);
    let stats = only(&diff).stats.expect("compared");
    assert_eq!((stats.nan_a, stats.nan_b, stats.infinite_a, stats.infinite_b), (1, 2, 1, 1));
    assert_eq!(values(only(&diff)), (2, 0.5, 0.5));
    let json = serde_json::to_value(&diff).expect("JSON");
    assert_eq!(json["tensors"]["differing"][0]["stats"]["relative"], 0.25);
}

#[test]
fn a_file_differs_from_itself_in_nothing() {
    let (_dir, a, b) = pair();
    let tensors: &[Tensor<'_>] =
        &[("x", "F32", &[3], f32s([1.0, f32::NAN, 3.0])), ("y", "I8", &[2], vec![1, 2])];
    for dir in [&a, &b] {
        safetensors(&dir.join("model.safetensors"), tensors);
        fs::write(dir.join("config.json"), "{}").expect("written");
    }
    for other in [&a, &b] {
        let diff = compare(&a, other);
        assert!(diff.same, "{diff:?}");
        assert_eq!((diff.tensors.equal, diff.tensors.equal_bytes, diff.files.equal), (2, 14, 2));
        assert_eq!((diff.delta.moved_bytes, &diff.contract[..]), (0, &[][..]));
    }
}

#[test]
fn figures_do_not_depend_on_chunks_or_threads_and_see_every_border() {
    let count = 40_000u64;
    let numbers = |i: u64| ((i * 7919) % 1000) as f32 / 300.0 - 1.5;
    // The first and last element, and both sides of where small and default chunks end.
    let changed = [0, 4095, 4096, 32_767, 32_768, count - 1];
    let a = f32s((0..count).map(numbers));
    let b = f32s((0..count).map(|i| numbers(i) + if changed.contains(&i) { 1.0 + i as f32 } else { 0.0 }));
    let (_dir, pa, pb) = pair();
    safetensors(&pa.join("m.safetensors"), &[("t", "F32", &[count], a)]);
    safetensors(&pb.join("m.safetensors"), &[("t", "F32", &[count], b)]);
    let (a, b) = (open(&pa), open(&pb));
    let run = |chunk_bytes, threads_max| {
        let config = DiffConfig { chunk_bytes, threads_max, ..DiffConfig::default() };
        only(&try_diff(&a, &b, &config).expect("comparable")).stats.expect("compared")
    };
    let first = run(16 << 10, 1);
    assert_eq!((first.elements, first.changed), (count, 6));
    assert_eq!(first, run(16 << 10, 7), "not even the last bit depends on threads");
    for chunk_bytes in [1, 40_000, 1 << 20] {
        let other = run(chunk_bytes, 3);
        assert_eq!((other.changed, other.elements), (first.changed, first.elements));
        let (x, y) = (first.values.expect("finite"), other.values.expect("finite"));
        assert_eq!(x.max_abs, y.max_abs);
        assert!((x.mean_abs - y.mean_abs).abs() < 1e-9 && (x.rms_a - y.rms_a).abs() < 1e-9);
    }
}

#[test]
fn progress_reaches_its_end_and_a_cancelled_comparison_stops() {
    let (_dir, pa, pb) = pair();
    safetensors(&pa.join("m.safetensors"), &[("t", "F32", &[9000], f32s([1.0; 9000]))]);
    safetensors(&pb.join("m.safetensors"), &[("t", "F32", &[9000], f32s([2.0; 9000]))]);
    let (a, b) = (open(&pa), open(&pb));
    let (done, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let progress = |step: DiffProgress| {
        done.fetch_max(step.done_bytes, Ordering::Relaxed);
        total.store(step.total_bytes, Ordering::Relaxed);
    };
    diff(&a, &b, &DiffConfig::default(), &progress, &AtomicBool::new(false)).expect("comparable");
    assert!(total.load(Ordering::Relaxed) >= 72_000);
    assert_eq!(done.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
    let cancelled = diff(&a, &b, &DiffConfig::default(), &progress, &AtomicBool::new(true));
    assert!(matches!(cancelled, Err(DiffError::Cancelled)));
}

#[test]
fn a_file_that_changes_after_it_was_opened_is_an_error() {
    let (_dir, pa, pb) = pair();
    for dir in [&pa, &pb] {
        safetensors(&dir.join("m.safetensors"), &[("t", "U8", &[4], vec![1, 2, 3, 4])]);
    }
    let (a, b) = (open(&pa), open(&pb));
    safetensors(&pb.join("m.safetensors"), &[("t", "U8", &[4], vec![1, 2, 3, 5])]);
    let path = pb.join("m.safetensors");
    let later =
        fs::metadata(&path).expect("a file").modified().expect("a time") + std::time::Duration::from_secs(5);
    fs::File::options().write(true).open(&path).expect("opened").set_modified(later).expect("set");
    let error = try_diff(&a, &b, &DiffConfig::default()).expect_err("it changed");
    assert!(matches!(&error, DiffError::Changed { path } if path.ends_with("b/m.safetensors")), "{error}");
    fs::remove_file(&path).expect("removed");
    let error = try_diff(&open(&pa), &b, &DiffConfig::default()).expect_err("it is gone");
    assert!(error.to_string().contains("cannot open"), "{error}");
}

#[test]
fn a_damaged_file_is_named() {
    let (_dir, pa, pb) = pair();
    safetensors(&pa.join("m.safetensors"), &[("t", "U8", &[4], vec![1, 2, 3, 4])]);
    let whole = fs::read(pa.join("m.safetensors")).expect("read");
    fs::write(pb.join("m.safetensors"), &whole[..whole.len() - 1]).expect("written");
    let error = Side::open(&pb, &crate::inspect::Options::default()).expect_err("truncated");
    assert!(
        error.to_string().contains("m.safetensors") && error.to_string().contains("truncated"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn swapping_the_sides_swaps_added_and_removed_and_keeps_distances(
        numbers in prop::collection::vec(any::<(u8, f32, f32)>(), 0..12)
    ) {
        let side = |bit: u8, pick: fn(&(u8, f32, f32)) -> f32| -> Vec<(String, Vec<u8>)> {
            let here = numbers.iter().enumerate().filter(|(_, n)| n.0 & bit == 0);
            here.map(|(i, n)| (format!("t{i}"), f32s([pick(n), 1.0]))).collect()
        };
        let (a, b) = (side(1, |n| n.1), side(2, |n| if n.0 & 4 == 0 { n.1 } else { n.2 }));
        let tensors = |side: &[(String, Vec<u8>)]| -> Vec<Tensor<'static>> {
            let leaked = side.iter().map(|(name, bytes)| (&*name.clone().leak(), "F32", &[2][..], bytes.clone()));
            leaked.collect()
        };
        let (there, back) =
            (compare_tensors(&tensors(&a), &tensors(&b)), compare_tensors(&tensors(&b), &tensors(&a)));
        prop_assert_eq!(there.tensors.equal, back.tensors.equal);
        prop_assert_eq!(there.tensors.count(Change::Added), back.tensors.count(Change::Removed));
        prop_assert_eq!(there.tensors.count(Change::Removed), back.tensors.count(Change::Added));
        for (x, y) in there.tensors.differing.iter().zip(&back.tensors.differing) {
            prop_assert_eq!(&x.name, &y.name);
            let figures = |t: &TensorDiff| t.stats.map(|s| (s.changed, s.values.map(|v| (v.max_abs, v.mean_abs))));
            prop_assert_eq!(figures(x), figures(y));
        }
        let itself = compare_tensors(&tensors(&a), &tensors(&a));
        prop_assert!(itself.same && itself.tensors.differing.is_empty());
    }
}
