//! The `[integrity]` section: when bytes that lie here are proven again.

use serde::{Deserialize, Serialize};
use weighlock_cache::VerifyOnRead;

/// When what lies in the store is proven again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Integrity {
    /// Before a layer is handed out: `changed`, if its size, time or inode differ from what was recorded, or `always`,
    /// which reads it whole at each open.
    pub verify_on_read: VerifyOnRead,
    /// Every layer is read again in the background at least once in so many days; 0 is never.
    pub scrub_days: u64,
    /// Bytes per second that this reads; more if the store is too large for that.
    pub scrub_bytes_per_s: u64,
}

impl Default for Integrity {
    fn default() -> Self {
        Self { verify_on_read: VerifyOnRead::Changed, scrub_days: 30, scrub_bytes_per_s: 16 << 20 }
    }
}

impl Integrity {
    /// # Errors
    /// The key that is out of range.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.scrub_days > 36_500 {
            return Err("integrity.scrub_days must be at most 36500".into());
        }
        if self.scrub_bytes_per_s < 1 << 16 {
            return Err(
                "integrity.scrub_bytes_per_s must be at least 65536; scrub_days = 0 turns it off".into()
            );
        }
        Ok(())
    }
}
