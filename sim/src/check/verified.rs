//! Nothing unverified is stored: no range that a host took as proven holds a group that its sender had spoiled.

use super::{Check, Seen};
use crate::world::World;

#[derive(Debug, Default)]
pub(super) struct Verified;

impl Check for Verified {
    fn name(&self) -> &'static str {
        "nothing unverified is stored"
    }

    fn see(&mut self, _: &World, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Received { by, from, layer, stored, bad: Some(bad), .. } if stored.contains(bad) => {
                Err(format!("host {by} stored group {bad} of layer {layer}, which {from} had spoiled"))
            }
            _ => Ok(()),
        }
    }
}
