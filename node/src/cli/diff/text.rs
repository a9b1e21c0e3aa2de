//! A comparison as people read it: the sum first, then the largest changes, then contract, templates and files.

use std::cmp::Ordering;

use weighlock_cache::diff::{
    Change, Compared, Diff, FieldChange, FileDiff, SideSummary, Stats, TensorDiff, TensorSide, TextDiff,
};
use weighlock_protocol::Sha256;

use crate::cli::output::{bytes, counted, table};

/// Longest value of a field or a header key that is shown, in characters.
const VALUE_CHARS_MAX: usize = 72;
/// Most header keys that are listed; `--json` has all.
const KEYS_MAX: usize = 20;

/// All of it; at most `top` tensors of each kind of change.
pub(super) fn of(diff: &Diff, top: usize) -> String {
    let mut out = side("A", &diff.a) + &side("B", &diff.b) + "\n";
    if diff.same {
        return out + "the same\n";
    }
    out += &summary(diff);
    out += &changed(diff, top);
    out += &reshaped(diff, top);
    for (change, title) in [(Change::Added, "only in B"), (Change::Removed, "only in A")] {
        out += &lone(diff, change, title, top);
    }
    out += &fields("contract", &diff.contract, usize::MAX);
    out += &fields("keys of the weights header", &diff.header, KEYS_MAX);
    for template in &diff.templates {
        let what = format!("chat template {}", clean(&template.name));
        let how = match template.change {
            Change::Added => ", only in B",
            Change::Removed => ", only in A",
            _ => "",
        };
        out += &lines(&format!("{what}{how}"), &template.text);
    }
    out += &files(&diff.files.differing);
    for file in &diff.files.differing {
        if let Some(text) = &file.text {
            out += &lines(&clean(&file.path), text);
        }
    }
    out
}

fn side(letter: &str, side: &SideSummary) -> String {
    let tensors = counted(side.tensors, "tensor");
    let files = counted(side.files, "file");
    format!("{letter}  {}: {}, {tensors} in {files}\n", clean(&side.name), bytes(side.bytes))
}

/// `212 tensors equal, 60 changed, 0 added, 1 removed; a delta fetch moves 12.3 MiB of 98 MiB`.
fn summary(diff: &Diff) -> String {
    let count = |change| diff.tensors.count(change);
    let retyped = count(Change::Dtype);
    let mut parts = vec![format!("{} equal", counted(diff.tensors.equal, "tensor"))];
    parts.push(format!("{} changed", count(Change::Changed) + retyped));
    if count(Change::Shape) > 0 {
        parts.push(format!("{} of another shape", count(Change::Shape)));
    }
    parts.push(format!("{} added", count(Change::Added)));
    parts.push(format!("{} removed", count(Change::Removed)));
    let delta = &diff.delta;
    let mut out = format!(
        "{}; a fetch of B by a host that has A moves {} of {}\n",
        parts.join(", "),
        bytes(delta.moved_bytes),
        bytes(delta.total_bytes)
    );
    let kept = diff.tensors.differing.iter().filter(|tensor| tensor.keeps_values()).count();
    if kept > 0 {
        out += &format!("of those that changed, {kept} have the same values in other bytes\n");
    }
    for shift in &diff.tensors.dtype_shifts {
        let (from, to) = (clean(&shift.from), clean(&shift.to));
        out += &format!("dtype {from} -> {to}: {}\n", counted(shift.tensors, "tensor"));
    }
    out
}

/// Tensors that were compared, or have another type, largest change first.
fn changed(diff: &Diff, top: usize) -> String {
    let of_interest = |tensor: &&TensorDiff| matches!(tensor.change, Change::Changed | Change::Dtype);
    let mut tensors: Vec<&TensorDiff> = diff.tensors.differing.iter().filter(of_interest).collect();
    tensors.sort_by(|x, y| largest_first(x, y));
    let (shown, left) = split(&tensors, top);
    if shown.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = shown.iter().map(|tensor| row(tensor)).collect();
    let head = ["TENSOR", "DTYPE", "SHAPE", "CHANGED", "MAX |A-B|", "MEAN |A-B|", "OF RMS(A)"];
    let mut out = format!("\n{}", table(&head, &[3, 4, 5, 6], &rows)) + &more(left);
    for tensor in shown {
        out += &not_finite(tensor);
    }
    out
}

/// By change against the size of A, then by share; what could not be compared comes last.
fn largest_first(x: &TensorDiff, y: &TensorDiff) -> Ordering {
    let key = |tensor: &TensorDiff| {
        let Some(stats) = tensor.stats else { return (-1.0, 0.0) };
        // From all zeros to anything is the largest change there is.
        let relative = stats.values.map_or(0.0, |values| values.relative.unwrap_or(f64::INFINITY));
        (relative, stats.changed_share)
    };
    let ((relative_x, share_x), (relative_y, share_y)) = (key(x), key(y));
    relative_y.total_cmp(&relative_x).then(share_y.total_cmp(&share_x)).then_with(|| x.name.cmp(&y.name))
}

fn row(tensor: &TensorDiff) -> Vec<String> {
    let dtype = match (&tensor.a, &tensor.b) {
        (Some(a), Some(b)) if a.dtype != b.dtype => format!("{} -> {}", a.dtype, b.dtype),
        (Some(side), _) | (None, Some(side)) => side.dtype.clone(),
        (None, None) => String::new(),
    };
    let mut row = vec![clean(&tensor.name), clean(&dtype), shape(tensor.b.as_ref())];
    let dash = || "-".to_owned();
    match &tensor.stats {
        None => row.extend(["not compared".into(), dash(), dash(), dash()]),
        Some(stats) => {
            let of = if tensor.compared == Some(Compared::Bytes) { " of bytes" } else { "" };
            row.push(percent(stats.changed_share) + of);
            match stats.values {
                None => row.extend([dash(), dash(), dash()]),
                Some(values) => {
                    row.extend([figure(values.max_abs), figure(values.mean_abs)]);
                    row.push(values.relative.map_or("A is 0".into(), percent));
                }
            }
        }
    }
    row
}

/// A line where NaN or infinities are not the same on both sides.
fn not_finite(tensor: &TensorDiff) -> String {
    let Some(Stats { nan_a, nan_b, infinite_a, infinite_b, .. }) = tensor.stats else {
        return String::new();
    };
    if (nan_a, infinite_a) == (nan_b, infinite_b) {
        return String::new();
    }
    let name = clean(&tensor.name);
    format!("warning: {name}: NaN {nan_a} -> {nan_b}, infinite {infinite_a} -> {infinite_b}\n")
}

fn reshaped(diff: &Diff, top: usize) -> String {
    let tensors: Vec<&TensorDiff> =
        diff.tensors.differing.iter().filter(|tensor| tensor.change == Change::Shape).collect();
    let (shown, left) = split(&tensors, top);
    if shown.is_empty() {
        return String::new();
    }
    let cell = |side: &Option<TensorSide>| {
        side.as_ref().map_or(String::new(), |it| format!("{} {}", clean(&it.dtype), shape(Some(it))))
    };
    let rows: Vec<_> =
        shown.iter().map(|tensor| vec![clean(&tensor.name), cell(&tensor.a), cell(&tensor.b)]).collect();
    format!("\nof another shape, not compared\n{}{}", table(&["TENSOR", "A", "B"], &[], &rows), more(left))
}

fn lone(diff: &Diff, change: Change, title: &str, top: usize) -> String {
    let tensors: Vec<&TensorDiff> =
        diff.tensors.differing.iter().filter(|tensor| tensor.change == change).collect();
    let (shown, left) = split(&tensors, top);
    if shown.is_empty() {
        return String::new();
    }
    let row = |tensor: &&TensorDiff| {
        let side = tensor.a.as_ref().or(tensor.b.as_ref());
        let (dtype, size) =
            side.map_or((String::new(), String::new()), |side| (clean(&side.dtype), bytes(side.bytes)));
        vec![clean(&tensor.name), dtype, shape(side), size]
    };
    let rows: Vec<_> = shown.iter().map(row).collect();
    format!("\n{title}\n{}{}", table(&["TENSOR", "DTYPE", "SHAPE", "SIZE"], &[3], &rows), more(left))
}

fn fields(title: &str, changes: &[FieldChange], most: usize) -> String {
    if changes.is_empty() {
        return String::new();
    }
    let width = changes.iter().map(|change| change.field.chars().count()).max().unwrap_or(0).min(40);
    let value = |value: &Option<String>| {
        let text = value.as_deref().map_or("(none)".into(), |value| clean(short(value)));
        match text.char_indices().nth(VALUE_CHARS_MAX) {
            Some((at, _)) => format!("{}...", &text[..at]),
            None => text,
        }
    };
    let mut out = format!("\n{title}\n");
    for change in changes.iter().take(most) {
        let (before, after) = (value(&change.before), value(&change.after));
        out += &format!("  {:<width$}  {before} -> {after}\n", clean(&change.field));
    }
    match changes.len().saturating_sub(most) {
        0 => out,
        left => out + &format!("  and {left} more; --json has all\n"),
    }
}

fn files(differing: &[FileDiff]) -> String {
    if differing.is_empty() {
        return String::new();
    }
    let size = |size: Option<u64>| size.map_or("-".into(), bytes);
    let row = |file: &FileDiff| {
        let change = match file.change {
            Change::Added => "only in B",
            Change::Removed => "only in A",
            _ => "changed",
        };
        vec![clean(&file.path), change.into(), size(file.a_bytes), size(file.b_bytes), inside(file)]
    };
    let rows: Vec<_> = differing.iter().map(row).collect();
    format!("\n{}", table(&["FILE", "", "A", "B", ""], &[2, 3], &rows))
}

/// What is known of the inside of a file.
fn inside(file: &FileDiff) -> String {
    if let Some(tokens) = &file.tokens {
        let (a, b) = (tokens.tokens_a, tokens.tokens_b);
        return match (tokens.added, tokens.removed, tokens.moved) {
            (0, 0, 0) => format!("the same {a} tokens; other settings"),
            (added, removed, moved) => {
                format!("{a} -> {b} tokens: {added} added, {removed} removed, {moved} with another id")
            }
        };
    }
    match &file.text {
        Some(text) => format!("+{} -{} lines", text.lines_added, text.lines_removed),
        None => String::new(),
    }
}

fn lines(title: &str, text: &TextDiff) -> String {
    let mut out = format!("\n{title}\n");
    for line in &text.lines {
        out += &format!("{}\n", clean(line));
    }
    if text.lines_left_out > 0 {
        out += &format!("... {} more lines\n", text.lines_left_out);
    }
    out
}

fn split<T>(all: &[T], top: usize) -> (&[T], usize) {
    let shown = all.len().min(top);
    (&all[..shown], all.len() - shown)
}

fn more(left: usize) -> String {
    if left == 0 { String::new() } else { format!("and {left} more; --tensors lists all\n") }
}

fn shape(side: Option<&TensorSide>) -> String {
    side.map_or(String::new(), |side| format!("{:?}", side.shape))
}

/// A digest by its first 12 digits; anything else as it is.
fn short(value: &str) -> &str {
    const SHOWN: usize = "sha256:".len() + 12;
    if value.parse::<Sha256>().is_ok() { &value[..SHOWN] } else { value }
}

/// What files say, without what a terminal would act on.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// `0`, `0.012`, `1.2e-7`: three significant digits.
pub(super) fn figure(x: f64) -> String {
    let size = x.abs();
    if x == 0.0 {
        "0".into()
    } else if !(1e-3..1e5).contains(&size) {
        format!("{x:.2e}")
    } else {
        // Rounded first: what is just below a power of ten may become it.
        let rounded: f64 = format!("{size:.2e}").parse().unwrap_or(size);
        let digits = 2 - rounded.log10().floor() as i32;
        format!("{x:.*}", usize::try_from(digits).unwrap_or(0))
    }
}

/// `0 %`, `0.012 %`, `100 %`. What is not all of it is never told as 100.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent == 0.0 || percent == 100.0 {
        format!("{percent:.0} %")
    } else if (99.95..100.0).contains(&percent) {
        "99.9 %".into()
    } else {
        format!("{} %", figure(percent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_shares_never_round_to_all() {
        let shown = [0.0, 0.012_345, 1.0, 123.4, 99_999.0, 1e-7, -0.5, 1e30, 0.999_99].map(figure);
        assert_eq!(shown, ["0", "0.0123", "1.00", "123", "99999", "1.00e-7", "-0.500", "1.00e30", "1.00"]);
        let shown = [0.0, 1.0, 0.999_999, 0.5, 1e-9, 1.5].map(percent);
        assert_eq!(shown, ["0 %", "100 %", "99.9 %", "50.0 %", "1.00e-7 %", "150 %"]);
    }

    #[test]
    fn nothing_in_a_name_reaches_the_terminal_as_a_command() {
        assert_eq!(short(&Sha256::of(b"").to_string()), "sha256:e3b0c44298fc");
        assert_eq!(short("sha256:no"), "sha256:no");
        assert_eq!(clean("a\x1b[2Jb\tc\n"), "a\u{fffd}[2Jb\tc\u{fffd}");
    }
}
