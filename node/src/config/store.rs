//! `[store]`: how much a host keeps, and for how long.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weighlock_cache::StoreConfig;
use weighlock_protocol::statement::NamespaceGlob;

/// How much a host keeps, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Bytes that layers, what is on its way and copies in directories may take; 0 is no limit.
    pub quota_bytes: u64,
    /// Bytes that are given back when the disk is full, so that statements can still be written; 0 is none.
    pub metadata_reserve_bytes: u64,
    /// Seconds after which what nobody waits for and nothing comes of is let go of.
    pub partial_keep_s: u64,
    /// Seconds that a directory of `weighlock path` counts as in use.
    pub view_keep_s: u64,
    /// Seconds that a damaged layer stays in quarantine.
    pub quarantine_keep_s: u64,
    /// Most bytes of quarantine.
    pub quarantine_bytes_max: u64,
    /// Hosts that should hold an artifact before this host lets go of it, by namespace (`acme`, `acme-*`, `*`).
    pub min_copies: BTreeMap<String, usize>,
}

impl Default for Store {
    fn default() -> Self {
        let usual = StoreConfig::default();
        Self {
            quota_bytes: 0,
            metadata_reserve_bytes: 16 << 20,
            partial_keep_s: usual.partial_keep_s,
            view_keep_s: usual.view_keep_s,
            quarantine_keep_s: usual.quarantine_keep_s,
            quarantine_bytes_max: usual.quarantine_bytes_max,
            min_copies: BTreeMap::new(),
        }
    }
}

impl Store {
    /// Checks what types cannot say.
    pub(super) fn check(&self) -> Result<(), String> {
        for (glob, copies) in &self.min_copies {
            if glob.parse::<NamespaceGlob>().is_err() {
                return Err(format!(
                    "store.min_copies: `{glob}` is no namespace; `acme`, `acme-*` and `*` are"
                ));
            }
            if !(1..=64).contains(copies) {
                return Err(format!("store.min_copies.{glob} must be 1 to 64"));
            }
        }
        if self.metadata_reserve_bytes > 1 << 30 {
            return Err("store.metadata_reserve_bytes must be at most 1073741824".into());
        }
        Ok(())
    }

    /// The configuration of a store that leaves `free_floor_bytes` free.
    pub fn of_cache(&self, free_floor_bytes: u64) -> StoreConfig {
        StoreConfig {
            free_floor_bytes,
            quota_bytes: self.quota_bytes,
            metadata_reserve_bytes: self.metadata_reserve_bytes,
            partial_keep_s: self.partial_keep_s,
            view_keep_s: self.view_keep_s,
            quarantine_keep_s: self.quarantine_keep_s,
            quarantine_bytes_max: self.quarantine_bytes_max,
            ..StoreConfig::default()
        }
    }
}
