//! Several manifests at once, some layers shared: all get on, none starves.

use super::flash_crowd;
use crate::check::{Check, shares};
use crate::layout::Layout;
use crate::options::Options;

/// Hosts from which on shares are looked at: in smaller runs a manifest may lack anybody to fetch it from.
const HOSTS_MIN: usize = 8;

pub(super) fn apply(options: &mut Options) {
    if options.models < 2 {
        options.models = 2 + usize::from(options.seed.is_multiple_of(2));
    }
    options.shards = options.shards.max(3);
}

/// Manifests of equal size whose first third of the weights is the same.
pub(super) fn layout(options: &Options) -> Layout {
    let one = flash_crowd::sizes(options, options.shards);
    let first_shard = one.len() - options.shards.max(1) as usize;
    let shared = first_shard..first_shard + options.shards as usize / 3;
    let (mut sizes, mut models) = (one.clone(), Vec::new());
    for model in 0..options.models.max(1) {
        let mut layers = Vec::new();
        for (place, size) in one.iter().enumerate() {
            let number = if model == 0 || shared.contains(&place) {
                place
            } else {
                sizes.push(*size);
                sizes.len() - 1
            };
            layers.push(u32::try_from(number).unwrap_or(u32::MAX));
        }
        models.push(layers);
    }
    Layout::new(&options.config(), &sizes, &models)
}

pub(super) fn checks(options: &Options) -> Vec<Box<dyn Check>> {
    if options.is_calm() && options.hosts >= HOSTS_MIN {
        vec![Box::<shares::Shares>::default()]
    } else {
        Vec::new()
    }
}
