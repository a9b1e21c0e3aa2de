//! A hash over everything that happens in a run: equal for equal runs.

/// The hash so far. Quick rather than strong: it tells runs apart, it does not resist anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace(u64);

impl Default for Trace {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Trace {
    /// Adds something that happened.
    pub fn note(&mut self, what: u8, numbers: &[u64]) {
        self.mix(u64::from(what));
        for number in numbers {
            self.mix(*number);
        }
    }

    /// 16 hex digits.
    pub fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }

    fn mix(&mut self, number: u64) {
        let wide = u128::from(self.0 ^ number) * u128::from(0xd6e8_feb8_6659_fd93u64);
        self.0 = ((wide >> 64) as u64 ^ wide as u64).rotate_left(23).wrapping_add(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_every_number_count() {
        let of = |notes: &[(u8, u64)]| {
            let mut trace = Trace::default();
            notes.iter().for_each(|(what, number)| trace.note(*what, &[*number]));
            trace.hex()
        };
        assert_eq!(of(&[(1, 2), (3, 4)]), of(&[(1, 2), (3, 4)]));
        assert_ne!(of(&[(1, 2), (3, 4)]), of(&[(3, 4), (1, 2)]));
        assert_ne!(of(&[(1, 2)]), of(&[(1, 3)]));
        assert_eq!(of(&[]).len(), 16);
    }
}
