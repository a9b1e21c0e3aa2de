//! Nothing that is stored is asked for again, not even after a restart.

use weighlock_protocol::Time;
use weighlock_protocol::wire::bao::GroupSet;

use super::{Check, Seen};

#[derive(Debug, Default)]
pub(super) struct Once;

impl Check for Once {
    fn name(&self) -> &'static str {
        "nothing stored is asked for again"
    }

    fn see(&mut self, _: Time, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Asked { by, layer, range, stored, .. }
                if stored.intersects(&GroupSet::from((*range).clone())) =>
            {
                Err(format!("host {by} asked for {range:?} of layer {layer} and has some of it"))
            }
            _ => Ok(()),
        }
    }
}
