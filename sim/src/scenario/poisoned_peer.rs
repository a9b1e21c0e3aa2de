//! A flash crowd in which some hosts offer everything and serve wrong bytes: they are named, everyone else finishes.

use crate::options::Options;

pub(super) fn apply(options: &mut Options) {
    options.hostile.liars = options.hostile.liars.max(1);
}
