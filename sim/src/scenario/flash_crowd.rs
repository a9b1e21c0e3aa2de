//! Everybody wants the same bytes at once and one host has them.

use crate::host::Role;
use crate::options::Options;

pub(super) fn apply(options: &mut Options) {
    options.liars = 0;
}

pub(super) fn cast(options: &Options) -> Vec<Role> {
    let fetchers = std::iter::repeat_n(Role::Fetcher, options.hosts);
    std::iter::once(Role::Seed).chain(fetchers).collect()
}
