//! Hosts that somebody here said are gone: not listed and not dialled until they speak again.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use tracing::{info, warn};
use weighlock_cache::Store;
use weighlock_protocol::KeyId;

use crate::error::{Error, Result};
use crate::net::control::ControlHandle;

/// Hosts that can be forgotten at once.
const FORGOTTEN_MAX: usize = 16_384;
/// Setting of the store that lists them.
const SETTING_FORGOTTEN: &str = "forgotten_hosts";

/// The list, in memory and in the store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ForgottenHosts {
    hosts: Arc<RwLock<BTreeSet<KeyId>>>,
    store: Store,
}

impl ForgottenHosts {
    /// As the store has it. Blocks on the disk.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn open(store: &Store) -> Result<Self> {
        let hosts: Option<BTreeSet<KeyId>> = store.setting(SETTING_FORGOTTEN).map_err(Error::from)?;
        Ok(Self { hosts: Arc::new(RwLock::new(hosts.unwrap_or_default())), store: store.clone() })
    }

    /// Whether a host is on it.
    pub(crate) fn contains(&self, host: &KeyId) -> bool {
        self.hosts.read().unwrap_or_else(PoisonError::into_inner).contains(host)
    }

    /// Puts a host on it. Blocks on the disk.
    ///
    /// # Errors
    /// Too many, or the store cannot be written.
    pub(crate) fn add(&self, host: KeyId) -> Result<()> {
        let mut hosts = self.hosts.write().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= FORGOTTEN_MAX && !hosts.contains(&host) {
            return Err(Error::refused(format!("{FORGOTTEN_MAX} hosts are forgotten already"))
                .hint("`weighlock member revoke` shuts out those that will not come back"));
        }
        let mut after = hosts.clone();
        after.insert(host);
        self.store.set_setting(SETTING_FORGOTTEN, Some(&after)).map_err(Error::from)?;
        *hosts = after;
        Ok(())
    }

    /// Takes those off it that speak: that are connected, or whose records are new. Blocks on the disk.
    pub(crate) fn welcome(&self, control: &ControlHandle, connected: &BTreeSet<KeyId>) {
        let mut hosts = self.hosts.write().unwrap_or_else(PoisonError::into_inner);
        let records = control.host_records();
        let records = records.borrow();
        let after: BTreeSet<KeyId> = hosts
            .iter()
            .filter(|host| !connected.contains(*host) && !records.contains_key(*host))
            .copied()
            .collect();
        if after.len() == hosts.len() {
            return;
        }
        for host in hosts.difference(&after) {
            info!(host = %host.short(), "a host that was forgotten speaks again");
        }
        let kept = (!after.is_empty()).then_some(&after);
        if let Err(e) = self.store.set_setting(SETTING_FORGOTTEN, kept) {
            warn!(error = %e, "cannot write down that it speaks");
        }
        *hosts = after;
    }

    /// Whether none is on it.
    pub(crate) fn is_empty(&self) -> bool {
        self.hosts.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}
