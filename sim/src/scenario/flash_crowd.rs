//! Everybody wants the same bytes at once and few have them.

use crate::layout::Layout;
use crate::options::Options;

/// One manifest.
pub(super) fn layout(options: &Options) -> Layout {
    let sizes = sizes(options, options.shards);
    let all = (0..).take(sizes.len()).collect();
    Layout::new(&options.config(), &sizes, &[all])
}

/// A model's layers in loading order by size: contract, configuration, small files, weights in `shards` files.
pub(super) fn sizes(options: &Options, shards: u32) -> Vec<u64> {
    let contract = options.total_bytes.min(200_000) / 2;
    let config = contract / 10;
    let mut left = options.total_bytes - contract - config;
    let mut sizes = vec![contract, config];
    for nth in 0..u64::from(options.small_files) {
        // Some are empty, as such files are.
        let small = (nth * 7_919 % 11 * 29_000).min(left / 10);
        left -= small;
        sizes.push(small);
    }
    let shards = u64::from(shards.max(1));
    sizes.extend((0..shards).map(|nth| left / shards + u64::from(nth < left % shards)));
    sizes
}
