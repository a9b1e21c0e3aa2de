//! What a daemon can do beyond the first version of the protocol, as bits that hosts tell each other.
//!
//! A bit is named when the first release sets it and never means anything else. Whoever does not know a bit ignores it;
//! whoever needs one asks only hosts that set it.

/// Answers questions about its audit log.
pub const AUDIT: u64 = 1 << 0;
/// Answers tree requests, so that others can reuse what they have of another artifact.
pub const TREE: u64 = 1 << 1;
/// Takes part in swarms over links.
pub const LINK: u64 = 1 << 2;

/// All that this release can do.
pub const OURS: u64 = AUDIT | TREE | LINK;

const NAMES: [(u64, &str); 3] = [(AUDIT, "audit"), (TREE, "tree"), (LINK, "link")];

/// The names of the bits that are set; `bit-17` where this release does not know the name.
pub fn names(bits: u64) -> Vec<String> {
    let name = |bit: u64| {
        let known = NAMES.iter().find(|(known, _)| *known == bit).map(|(_, name)| (*name).to_owned());
        known.unwrap_or_else(|| format!("bit-{}", bit.trailing_zeros()))
    };
    (0..u64::BITS).map(|n| 1 << n).filter(|bit| bits & bit != 0).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_a_newer_release_are_shown_and_do_not_disturb() {
        assert_eq!(names(OURS | 1 << 63), ["audit", "tree", "link", "bit-63"]);
        assert_eq!(names(0), [""; 0]);
    }
}
