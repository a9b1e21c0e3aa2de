//! Layers whose bytes are wrong: away from every door at once, and what of them holds kept, so that little is fetched.

use std::fs::Metadata;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, Weak};

use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::group_count;

use super::outboard::tree_bytes;
use super::partial::{OPEN_MODE, PartialLayer, PartialPaths};
use super::seal::sync_places;
use crate::error::{StoreError, at};
use crate::fs::{self, Stamp};
use crate::meta::DamageRow;
use crate::store::Store;

/// A layer that was found damaged and is not whole again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Which layer.
    pub layer: LayerId,
    /// Its size in bytes.
    pub size: u64,
    /// When that was found, in seconds since 1970.
    pub found_s: u64,
    /// What was found.
    pub reason: String,
    /// Groups of 16 KiB that do not hold, of [`groups`](Self::groups).
    pub bad_groups: u64,
    /// Groups in all.
    pub groups: u64,
}

impl DamageRow {
    /// Damage of which no more is known than that nothing of the layer is here.
    pub(crate) fn all(size: u64, reason: String) -> Self {
        let groups = group_count(size);
        Self { size, found_s: fs::unix_seconds(), reason, bad_groups: groups, groups }
    }

    fn of(&self, layer: LayerId) -> Damage {
        let Self { size, found_s, reason, bad_groups, groups } = self.clone();
        Damage { layer, size, found_s, reason, bad_groups, groups }
    }
}

impl Store {
    /// Layers that were found damaged and are not whole again, by id.
    ///
    /// # Errors
    /// The database failed.
    pub fn damaged_layers(&self) -> Result<Vec<Damage>, StoreError> {
        Ok(self.meta().damaged()?.into_iter().map(|(layer, row)| row.of(layer)).collect())
    }

    /// What is known of a layer that was found damaged and is not whole again.
    ///
    /// # Errors
    /// The database failed.
    pub fn damage_of(&self, id: &LayerId) -> Result<Option<Damage>, StoreError> {
        Ok(self.meta().damage(id)?.map(|row| row.of(*id)))
    }

    /// Damaged layers that became whole again since the store was opened.
    pub fn healed_layers(&self) -> u64 {
        self.meta().healed()
    }

    /// Sets a damaged layer aside and gives the error that says so. `live` is the layer's slot, locked.
    pub(crate) fn damaged<T>(
        &self,
        id: &LayerId,
        live: &mut Weak<PartialLayer>,
        reason: String,
    ) -> Result<T, StoreError> {
        let damage = self.set_aside(id, live, reason, 0..0)?;
        Err(StoreError::Corrupt { layer: *id, reason: damage.reason })
    }

    /// As [`set_aside`](Self::set_aside), for who read the layer without its slot: `read` was on record then. `None` if
    /// it was removed, set aside or sealed anew since, as what was read says nothing of what is here now.
    pub(crate) fn set_aside_read(
        &self,
        id: &LayerId,
        read: Stamp,
        reason: String,
        wrong: Range<u64>,
    ) -> Result<Option<Damage>, StoreError> {
        let slot = self.slot(id);
        let mut live = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match self.meta().layer(id)? {
            Some(now) if now.stamp() == read => self.set_aside(id, &mut live, reason, wrong).map(Some),
            _ => Ok(None),
        }
    }

    /// Takes a sealed layer whose bytes are wrong away from all doors. What of it holds against its tree becomes a
    /// partial layer, in the same file: readers that have it open or mapped see zeros in the place of what is wrong,
    /// then the right bytes as they come. Bytes `wrong` that the page cache still has right are written to the disk
    /// again; if all of the layer holds then, it is sealed again.
    ///
    /// A kill at any point leaves it sealed (and found again), or away: opening the store ends what was begun.
    pub(crate) fn set_aside(
        &self,
        id: &LayerId,
        live: &mut Weak<PartialLayer>,
        reason: String,
        wrong: Range<u64>,
    ) -> Result<Damage, StoreError> {
        let Some(info) = self.meta().layer(id)? else { return Err(StoreError::NotHeld(*id)) };
        let row = DamageRow::all(info.size, reason);
        tracing::error!(layer = %id, reason = row.reason, "a layer is damaged on disk; setting it aside");
        let data = self.layout().layer(id);
        let paths = PartialPaths::new(&self.layout().partial(), id);
        paths.remove()?;
        let keeps = self.is_ours(&data, info.size) && self.claim(&paths, id, info.size);
        self.meta().set_aside(&[(*id, row.clone())])?;
        self.doubt_views(id);
        if !keeps {
            self.quarantine(id)?;
            return Ok(row.of(*id));
        }
        self.move_aside(id, &paths, info.size)?;
        let Some(partial) = PartialLayer::resume(paths.clone(), self.boot_id())?.map(Arc::new) else {
            paths.remove()?;
            return Ok(row.of(*id));
        };
        *live = Arc::downgrade(&partial);
        let row = DamageRow { bad_groups: row.groups - partial.have_count(), ..row };
        tracing::warn!(layer = %id, bad_groups = row.bad_groups, groups = row.groups, "what of the layer holds is kept");
        self.meta().set_damage(id, &row)?;
        partial.rewrite(wrong)?;
        if partial.complete() {
            self.seal_all(&[partial])?;
        }
        Ok(row.of(*id))
    }

    /// Moves the files of a layer that is not on record any more to those of a partial layer, the data first: opening
    /// the store takes a tree without its data after it.
    pub(crate) fn move_aside(&self, id: &LayerId, paths: &PartialPaths, size: u64) -> Result<(), StoreError> {
        for (from, to, len) in [
            (self.layout().layer(id), &paths.data, size),
            (self.layout().layer_tree(id), &paths.tree, tree_bytes(size)),
        ] {
            if !from.exists() {
                continue;
            }
            fs::chmod(&from, OPEN_MODE)?;
            let file = std::fs::File::options().write(true).open(&from).map_err(at(&from, "open"))?;
            if file.metadata().map_err(at(&from, "stat"))?.len() != len {
                file.set_len(len).map_err(at(&from, "set the length of"))?;
            }
            std::fs::rename(&from, to).map_err(at(&from, "set aside"))?;
        }
        sync_places(self.layout(), [id])?;
        fs::sync_dir(&self.layout().partial())
    }

    /// Moves what lies in the place of a layer away, and removes its tree. Of such files only so many are kept.
    pub(crate) fn quarantine(&self, id: &LayerId) -> Result<(), StoreError> {
        let data = self.layout().layer(id);
        let target = self.layout().quarantine().join(id.hex());
        match std::fs::rename(&data, &target) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => other.map_err(at(&data, "set aside"))?,
        }
        fs::remove_file(&self.layout().layer_tree(id))?;
        self.trim_quarantine()
    }

    /// Whether a file is one that the store may change: a regular file of its own user under one name, and its tree is
    /// worth something.
    fn is_ours(&self, data: &Path, size: u64) -> bool {
        let own = rustix::process::geteuid().as_raw();
        tree_bytes(size) > 0
            && std::fs::symlink_metadata(data)
                .is_ok_and(|meta| meta.is_file() && meta.nlink() == 1 && meta.uid() == own)
    }

    /// False if that does not work, for example on a full disk: then nothing of the layer is kept.
    fn claim(&self, paths: &PartialPaths, id: &LayerId, size: u64) -> bool {
        let claimed =
            PartialLayer::claim_all(paths, id, size).and_then(|()| fs::sync_dir(&self.layout().partial()));
        claimed
            .inspect_err(|error| tracing::warn!(layer = %id, %error, "nothing of the layer is kept"))
            .is_ok()
    }

    /// Removes the oldest files that were set aside, down to the limits.
    fn trim_quarantine(&self) -> Result<(), StoreError> {
        let dir = self.layout().quarantine();
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(at(&dir, "list"))? {
            let path = entry.map_err(at(&dir, "list"))?.path();
            let meta = std::fs::symlink_metadata(&path).map_err(at(&path, "stat"))?;
            files.push((aside_since(&meta), meta.len(), path));
        }
        files.sort();
        let mut bytes: u64 = files.iter().map(|(_, len, _)| len).sum();
        let mut count = files.len();
        for (_, len, path) in files {
            if bytes <= self.config().quarantine_bytes_max && count <= self.config().quarantine_files_max {
                break;
            }
            fs::remove_file(&path)?;
            (bytes, count) = (bytes - len, count - 1);
        }
        Ok(())
    }
}

/// When a file in quarantine was set aside, in seconds and nanoseconds since 1970. A rename sets the time of its last
/// change; that of its content may be years ago.
pub(crate) fn aside_since(meta: &Metadata) -> (i64, i64) {
    (meta.ctime(), meta.ctime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StoreConfig;
    use weighlock_protocol::wire::bao::GROUP_BYTES;

    fn open(dir: &Path) -> Store {
        let config =
            StoreConfig { free_floor_bytes: 0, boot_id: Some("boot".into()), ..StoreConfig::default() };
        Store::open(dir, config).expect("opened")
    }

    /// A store with a sealed layer of five groups.
    fn sealed(dir: &Path) -> (Store, LayerId, Vec<u8>) {
        let store = open(dir);
        let bytes: Vec<u8> = (0..5 * GROUP_BYTES - 7).map(|i| (i * 31 % 251) as u8).collect();
        let id = LayerId::of(&bytes);
        let data = store.layout().layer(&id);
        drop(store);
        std::fs::create_dir_all(data.parent().expect("a parent")).expect("made");
        std::fs::write(&data, &bytes).expect("written");
        let store = open(dir);
        assert_eq!(store.recovery().registered, [id]);
        (store, id, bytes)
    }

    #[test]
    fn a_kill_while_a_layer_is_set_aside_leaves_it_sealed_or_away() {
        // How many of the steps were done: have-map, record, data, tree.
        for steps in 0..=4 {
            let dir = tempfile::tempdir().expect("a directory");
            let (store, id, mut bytes) = sealed(dir.path());
            let (data, tree) = (store.layout().layer(&id), store.layout().layer_tree(&id));
            bytes[GROUP_BYTES as usize + 1] ^= 1;
            fs::chmod(&data, 0o640).expect("opened");
            std::fs::write(&data, &bytes).expect("rotten");
            let paths = PartialPaths::new(&store.layout().partial(), &id);
            let size = bytes.len() as u64;
            if steps > 0 {
                assert!(store.is_ours(&data, size) && store.claim(&paths, &id, size));
            }
            if steps > 1 {
                store.meta().set_aside(&[(id, DamageRow::all(size, "rot".into()))]).expect("recorded");
            }
            if steps > 2 {
                std::fs::rename(&data, &paths.data).expect("moved");
            }
            if steps > 3 {
                std::fs::rename(&tree, &paths.tree).expect("moved");
            }
            drop(store);
            let store = open(dir.path());
            let sealed = store.layer(&id).expect("read").is_some();
            assert_eq!(sealed, steps < 2, "{steps}");
            assert_eq!(store.damaged_layers().expect("read").len(), usize::from(steps > 1), "{steps}");
            if sealed {
                assert!(store.partials().expect("read").is_empty(), "{steps}");
                let found = store.scrub(&id, 0, &mut |_| true).expect("read");
                assert!(matches!(found, crate::Scrubbed::Damaged(Damage { bad_groups: 1, .. })), "{found:?}");
            }
            let partial = store.partial(&id, size).expect("healing");
            assert_eq!(partial.missing(), weighlock_protocol::wire::bao::GroupSet::from(1..2), "{steps}");
            assert!(!data.exists() && !tree.exists(), "{steps}");
        }
    }

    #[test]
    fn what_was_read_before_a_layer_was_healed_says_nothing_of_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, id, right) = sealed(dir.path());
        let data = store.layout().layer(&id);
        let before = store.layer(&id).expect("read").expect("sealed").stamp();
        let mut wrong = right.clone();
        wrong[GROUP_BYTES as usize + 1] ^= 1;
        fs::chmod(&data, 0o640).expect("opened");
        std::fs::write(&data, &wrong).expect("rotten");
        // Two readers meet it; the slower one says so when it is whole again.
        assert!(store.set_aside_read(&id, before, "rot".into(), 0..0).expect("set aside").is_some());
        assert_eq!(
            store.set_aside_read(&id, before, "rot".into(), 0..0).expect("read"),
            None,
            "away already"
        );
        let partial = store.partial(&id, right.len() as u64).expect("healing");
        let group = partial.adopt(1, &right[GROUP_BYTES as usize..2 * GROUP_BYTES as usize]).expect("healed");
        assert_eq!(group, weighlock_protocol::wire::bao::GroupSet::from(1..2));
        store.seal_all(&[partial]).expect("sealed");
        assert_eq!(store.set_aside_read(&id, before, "rot".into(), 0..0).expect("read"), None, "whole again");
        assert!(store.layer(&id).expect("read").is_some());
        assert_eq!(store.healed_layers(), 1);
        let now = store.layer(&id).expect("read").expect("sealed").stamp();
        assert!(store.set_aside_read(&id, now, "rot".into(), 0..0).expect("set aside").is_some());
    }

    #[test]
    fn what_is_set_aside_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = StoreConfig {
            quarantine_files_max: 2,
            quarantine_bytes_max: 100,
            free_floor_bytes: 0,
            ..StoreConfig::default()
        };
        let store = Store::open(dir.path(), config).expect("opened");
        let kept = |store: &Store| {
            let files = std::fs::read_dir(store.layout().quarantine()).expect("listed");
            files.map(|file| file.expect("a file").file_name()).collect::<std::collections::BTreeSet<_>>()
        };
        let put = |n: u8, len: usize| {
            let id = LayerId([n; 32]);
            std::fs::create_dir_all(store.layout().layer_dir(&id)).expect("made");
            std::fs::write(store.layout().layer(&id), vec![n; len]).expect("written");
            store.quarantine(&id).expect("set aside");
            std::ffi::OsString::from(id.hex())
        };
        let _ = put(1, 10);
        let (two, three) = (put(2, 10), put(3, 10));
        assert_eq!(kept(&store), [two, three].into(), "the oldest went");
        let _ = put(4, 101);
        assert!(kept(&store).is_empty(), "over the bytes");
    }

    #[test]
    fn the_time_that_a_layer_stays_aside_begins_when_it_is_set_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = StoreConfig { quarantine_keep_s: 3600, free_floor_bytes: 0, ..StoreConfig::default() };
        let store = Store::open(dir.path(), config).expect("opened");
        let id = LayerId([1; 32]);
        std::fs::create_dir_all(store.layout().layer_dir(&id)).expect("made");
        let data = store.layout().layer(&id);
        std::fs::write(&data, [1u8; 10]).expect("written");
        // Sealed long ago.
        let before = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
        let file = std::fs::File::options().write(true).open(&data).expect("opened");
        file.set_modified(before).expect("set");
        store.quarantine(&id).expect("set aside");
        let garbage = store.garbage().expect("listed");
        let due: Vec<(String, bool)> = garbage.into_iter().map(|one| (one.name, one.due)).collect();
        assert_eq!(due, [(id.hex(), false)]);
    }
}
