//! Nobody asks for what was not declared to it.

use std::collections::BTreeMap;

use weighlock_protocol::Time;
use weighlock_protocol::wire::bao::GroupSet;

use super::{Check, Seen};

#[derive(Debug, Default)]
pub(super) struct DeclaredOnly {
    /// By who heard it, from whom, of which layer.
    heard: BTreeMap<(usize, usize, usize), GroupSet>,
}

impl DeclaredOnly {
    fn forget(&mut self, from: (usize, usize, usize), to: (usize, usize, usize)) {
        let keys: Vec<_> = self.heard.range(from..to).map(|(key, _)| *key).collect();
        for key in keys {
            self.heard.remove(&key);
        }
    }
}

impl Check for DeclaredOnly {
    fn name(&self) -> &'static str {
        "only declared ranges are asked for"
    }

    fn see(&mut self, _: Time, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Declared { to, from, layer, have } => {
                *self.heard.entry((*to, *from, *layer)).or_default() |= (*have).clone();
            }
            Seen::Gone { by, peer } => self.forget((*by, *peer, 0), (*by, *peer + 1, 0)),
            Seen::Restarted { host } => self.forget((*host, 0, 0), (*host + 1, 0, 0)),
            Seen::Asked { by, from, layer, range, .. } => {
                let asked = GroupSet::from((*range).clone());
                let heard = self.heard.get(&(*by, *from, *layer));
                if !heard.is_some_and(|have| asked.is_subset(have)) {
                    return Err(format!(
                        "host {by} asked {from} for {range:?} of layer {layer}, which it never declared"
                    ));
                }
            }
            Seen::Received { .. } | Seen::Banned { .. } => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_undeclared_or_forgotten_range_is_a_violation() {
        let mut check = DeclaredOnly::default();
        let have = GroupSet::from(0..10);
        let none = GroupSet::empty();
        let declared = Seen::Declared { to: 1, from: 2, layer: 0, have: &have };
        let asked = |range| Seen::Asked { by: 1, from: 2, layer: 0, range, stored: &none };
        assert_eq!(check.see(Time(0), &declared), Ok(()));
        assert_eq!(check.see(Time(0), &asked(&(3..10))), Ok(()));
        assert!(check.see(Time(0), &asked(&(3..11))).is_err());
        assert_eq!(check.see(Time(0), &Seen::Gone { by: 1, peer: 2 }), Ok(()));
        assert!(check.see(Time(0), &asked(&(3..4))).is_err());
    }
}
