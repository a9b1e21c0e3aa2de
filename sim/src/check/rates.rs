//! Nobody moves more than its link carries or its rate limit allows: the first keeps the model of the network honest.

use super::{Check, Seen};
use crate::world::World;

#[derive(Debug, Default)]
pub(super) struct Rates;

impl Check for Rates {
    fn name(&self) -> &'static str {
        "rates are kept"
    }

    fn see(&mut self, _: &World, _: &Seen<'_>) -> Result<(), String> {
        Ok(())
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        let config = world.options().config();
        let seconds = world.now().0 as f64 / 1e9;
        for (index, host) in world.hosts().iter().enumerate() {
            let sent = world.network().sent_bytes(index) as f64;
            // Between two times that links are shared, a flow may have more than its share.
            let carried = host.player.up as f64 * (seconds * 1.01 + world.options().share_us as f64 / 1e6);
            if sent > carried + 65_536.0 {
                return Err(format!("host {index} sent {sent} bytes over a link that carries {carried}"));
            }
            if let Some(limit) = config.upload_bytes_per_s {
                let piece = world.options().piece_bytes() as f64;
                // Requests are let through whole; a bucket may hold a second's worth.
                let allowed = limit as f64 * (seconds * 1.06 + 1.0)
                    + piece * (config.uploads_max.max(config.uploads_release_max) + 1) as f64;
                if sent > allowed {
                    return Err(format!("host {index} sent {sent} bytes and was allowed {allowed}"));
                }
            }
        }
        Ok(())
    }
}
