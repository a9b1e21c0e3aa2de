//! What the store knows about layers, manifests and statements, in one embedded database.

mod integrity;
mod keep;
mod reserve;
mod tables;
mod upgrade;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableError,
    WriteTransaction,
};
use weighlock_protocol::{LayerId, ManifestDigest, Sha256, StatementId};

use crate::error::{StoreError, at, is_full};
use crate::fs::{self, Stamp};
pub(crate) use integrity::DamageRow;
pub(crate) use reserve::Reserve;
use tables::{
    DAMAGED, FORMAT, FORMAT_KEY, GONE, HEADS, HELD, LAYERS, LayerRow, MANIFESTS, META, PINS, SETTINGS,
    STATEMENT_INDEX, STATEMENTS, USED,
};

/// Free space below which nothing is added to the database: a write that meets the end of the disk would make it
/// refuse all work until it is opened again.
const RESERVE_BYTES: u64 = 1 << 20;

/// What is on record about a sealed layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerInfo {
    /// Length in bytes.
    pub size: u64,
    /// SHA-256, once it was computed on this host.
    pub sha256: Option<Sha256>,
    /// Modification time when the layer was sealed, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Inode when the layer was sealed.
    pub inode: u64,
    /// When all its bytes were last proven, in seconds since 1970.
    pub proven_s: u64,
}

impl LayerInfo {
    pub(crate) fn new(stamp: Stamp, sha256: Option<Sha256>) -> Self {
        Self {
            size: stamp.size,
            sha256,
            mtime_ns: stamp.mtime_ns,
            inode: stamp.inode,
            proven_s: fs::unix_seconds(),
        }
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp { size: self.size, mtime_ns: self.mtime_ns, inode: self.inode }
    }

    fn row(&self) -> LayerRow {
        (self.size, self.sha256.map(|sha| sha.0), self.mtime_ns, self.inode, self.proven_s)
    }

    fn from_row((size, sha256, mtime_ns, inode, proven_s): LayerRow) -> Self {
        Self { size, sha256: sha256.map(Sha256), mtime_ns, inode, proven_s }
    }
}

/// The head of a channel as the node writes it down, or that it has none.
pub type HeadChange = (String, Option<Vec<u8>>);

/// Opens the database file.
type Opener = Box<dyn Fn(&Path) -> Result<Database, redb::DatabaseError> + Send + Sync>;

/// The embedded database. Every write is one durable transaction.
pub(crate) struct Meta {
    db: RwLock<Opened>,
    open: Opener,
    path: PathBuf,
    /// Damaged layers that became whole again since the store was opened.
    healed: AtomicU64,
    reserve: Reserve,
}

/// The database, and how often it was opened.
struct Opened {
    /// None where opening it again failed.
    db: Option<Database>,
    times: u64,
}

impl Meta {
    /// Opens or creates the database at `path`; upgrades an older format, refuses a newer one before it writes.
    pub(crate) fn open(
        path: PathBuf,
        store: &Path,
        cache_bytes_max: usize,
        reserve: Reserve,
    ) -> Result<Self, StoreError> {
        let create = move |path: &Path| Database::builder().set_cache_size(cache_bytes_max).create(path);
        let made = Mutex::new(None);
        if !path.exists() {
            // Under another name first: a database that was cut off while it was made cannot be opened again.
            let new = path.with_extension("new");
            fs::remove_file(&new)?;
            let db = create(&new).map_err(|e| meta_error(&new, "create")(e.into()))?;
            std::fs::rename(&new, &path).map_err(at(&new, "move into place"))?;
            fs::sync_dir(store)?;
            *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(db);
        }
        let open = move |path: &Path| {
            let made = made.lock().unwrap_or_else(PoisonError::into_inner).take();
            made.map_or_else(|| create(path), Ok)
        };
        Self::open_by(path, store, Box::new(open), reserve)
    }

    fn open_by(path: PathBuf, store: &Path, open: Opener, reserve: Reserve) -> Result<Self, StoreError> {
        let opened = open(&path).or_else(|e| {
            let e = meta_error(&path, "open")(e.into());
            let again = matches!(e, StoreError::NoSpace { .. }) && reserve.give_back();
            if again { open(&path).map_err(|e| meta_error(&path, "open")(e.into())) } else { Err(e) }
        });
        let opened = RwLock::new(Opened { db: Some(opened?), times: 1 });
        let meta = Self { db: opened, open, path, healed: AtomicU64::new(0), reserve };
        let found = meta.read("read the format", |txn| match txn.open_table(META) {
            Ok(table) => Ok(table.get(FORMAT_KEY)?.map(|format| format.value())),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(e) => Err(e.into()),
        })?;
        if let Some(found) = found.filter(|found| *found > FORMAT) {
            return Err(StoreError::Newer { path: store.to_owned(), found, supported: FORMAT });
        }
        meta.urgent("create tables", |txn| {
            txn.open_table(LAYERS)?;
            txn.open_table(DAMAGED)?;
            txn.open_table(MANIFESTS)?;
            txn.open_table(HELD)?;
            txn.open_table(STATEMENTS)?;
            txn.open_table(STATEMENT_INDEX)?;
            txn.open_table(SETTINGS)?;
            txn.open_table(HEADS)?;
            txn.open_table(PINS)?;
            txn.open_table(USED)?;
            txn.open_table(GONE)?;
            upgrade::run(txn, found)?;
            txn.open_table(META)?.insert(FORMAT_KEY, FORMAT)?;
            Ok(())
        })?;
        if let Some(from) = found.filter(|found| *found < FORMAT) {
            tracing::info!(store = %store.display(), from, to = FORMAT, "store upgraded");
        }
        Ok(meta)
    }

    pub(crate) fn layer(&self, id: &LayerId) -> Result<Option<LayerInfo>, StoreError> {
        self.read("read a layer", |txn| {
            let row = txn.open_table(LAYERS)?.get(id.0)?;
            Ok(row.map(|row| LayerInfo::from_row(row.value())))
        })
    }

    pub(crate) fn layers_of(&self, ids: &[LayerId]) -> Result<Vec<Option<LayerInfo>>, StoreError> {
        self.read("read layers", |txn| {
            let table = txn.open_table(LAYERS)?;
            let row = |id: &LayerId| Ok(table.get(id.0)?.map(|row| LayerInfo::from_row(row.value())));
            ids.iter().map(row).collect()
        })
    }

    pub(crate) fn layers(&self) -> Result<Vec<(LayerId, LayerInfo)>, StoreError> {
        self.read("list layers", |txn| {
            let table = txn.open_table(LAYERS)?;
            let rows = table.iter()?.map(|row| {
                let (id, row) = row?;
                Ok((LayerId(id.value()), LayerInfo::from_row(row.value())))
            });
            rows.collect()
        })
    }

    /// Changes the row of a layer if there is one.
    pub(crate) fn update_layer(
        &self,
        id: &LayerId,
        change: impl Fn(&mut LayerInfo),
    ) -> Result<bool, StoreError> {
        self.write("change a layer", |txn| {
            let mut table = txn.open_table(LAYERS)?;
            let Some(mut info) = table.get(id.0)?.map(|row| LayerInfo::from_row(row.value())) else {
                return Ok(false);
            };
            change(&mut info);
            table.insert(id.0, info.row())?;
            Ok(true)
        })
    }

    /// Everything of one commit in one transaction.
    pub(crate) fn commit(
        &self,
        layers: &[(LayerId, LayerInfo)],
        manifests: &[(ManifestDigest, &[u8], bool)],
        statements: &[(StatementId, Vec<u8>)],
        heads: &[HeadChange],
    ) -> Result<(), StoreError> {
        // What is said and what it moves goes in on a full disk too, from the reserve; content does not.
        let urgent = layers.is_empty() && !(statements.is_empty() && heads.is_empty());
        let run = |txn: &WriteTransaction| {
            let mut table = txn.open_table(LAYERS)?;
            let mut damaged = txn.open_table(DAMAGED)?;
            let mut healed = 0;
            for (id, info) in layers {
                table.insert(id.0, info.row())?;
                healed += u64::from(damaged.remove(id.0)?.is_some());
            }
            let mut table = txn.open_table(MANIFESTS)?;
            let mut held = txn.open_table(HELD)?;
            for (digest, bytes, hold) in manifests {
                table.insert(digest.0, *bytes)?;
                if *hold {
                    held.insert(digest.0, ())?;
                }
            }
            let mut table = txn.open_table(STATEMENTS)?;
            let mut index = txn.open_table(STATEMENT_INDEX)?;
            let mut next = table.last()?.map_or(0, |(number, _)| number.value() + 1);
            for (id, bytes) in statements {
                if let Some(number) = index.get(id.0)?.map(|number| number.value()) {
                    table.insert(number, (id.0, bytes.as_slice()))?;
                    continue;
                }
                index.insert(id.0, next)?;
                table.insert(next, (id.0, bytes.as_slice()))?;
                next += 1;
            }
            let mut table = txn.open_table(HEADS)?;
            for (channel, head) in heads {
                match head {
                    Some(head) => table.insert(channel.as_str(), head.as_slice())?,
                    None => table.remove(channel.as_str())?,
                };
            }
            Ok(healed)
        };
        let healed = if urgent { self.urgent("commit", run) } else { self.add("commit", run) }?;
        if healed > 0 {
            tracing::info!(layers = healed, "damaged layers are whole again");
            self.healed.fetch_add(healed, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes the reserve again once there is room beside `floor_bytes`.
    pub(crate) fn refill_reserve(&self, floor_bytes: u64) -> Result<(), StoreError> {
        self.reserve.refill(floor_bytes)
    }

    pub(crate) fn heads(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.read("list heads", |txn| {
            let table = txn.open_table(HEADS)?;
            let row = |row: Result<(redb::AccessGuard<'_, &str>, redb::AccessGuard<'_, &[u8]>), _>| {
                let (channel, head) = row?;
                Ok((channel.value().to_owned(), head.value().to_vec()))
            };
            table.iter()?.map(row).collect()
        })
    }

    pub(crate) fn remove_statements(&self, ids: &[StatementId]) -> Result<(), StoreError> {
        self.urgent("remove statements", |txn| {
            let mut table = txn.open_table(STATEMENTS)?;
            let mut index = txn.open_table(STATEMENT_INDEX)?;
            for id in ids {
                if let Some(number) = index.remove(id.0)?.map(|number| number.value()) {
                    table.remove(number)?;
                }
            }
            Ok(())
        })
    }

    pub(crate) fn manifest(&self, digest: &ManifestDigest) -> Result<Option<Arc<[u8]>>, StoreError> {
        self.read("read a manifest", |txn| {
            let row = txn.open_table(MANIFESTS)?.get(digest.0)?;
            Ok(row.map(|row| row.value().into()))
        })
    }

    pub(crate) fn manifests(&self) -> Result<Vec<ManifestDigest>, StoreError> {
        self.read("list manifests", |txn| {
            let table = txn.open_table(MANIFESTS)?;
            table.iter()?.map(|row| Ok(ManifestDigest(row?.0.value()))).collect()
        })
    }

    pub(crate) fn remove_manifest(&self, digest: &ManifestDigest) -> Result<bool, StoreError> {
        self.urgent("remove a manifest", |txn| {
            txn.open_table(HELD)?.remove(digest.0)?;
            let removed = txn.open_table(MANIFESTS)?.remove(digest.0)?.is_some();
            Ok(removed)
        })
    }

    pub(crate) fn set_held(&self, digest: &ManifestDigest, held: bool) -> Result<(), StoreError> {
        self.add("hold a manifest", |txn| {
            let mut table = txn.open_table(HELD)?;
            if held {
                table.insert(digest.0, ())?;
            } else {
                table.remove(digest.0)?;
            }
            Ok(())
        })
    }

    pub(crate) fn is_held(&self, digest: &ManifestDigest) -> Result<bool, StoreError> {
        self.read("read a mark", |txn| Ok(txn.open_table(HELD)?.get(digest.0)?.is_some()))
    }

    pub(crate) fn held(&self) -> Result<Vec<ManifestDigest>, StoreError> {
        self.read("list held manifests", |txn| {
            let table = txn.open_table(HELD)?;
            table.iter()?.map(|row| Ok(ManifestDigest(row?.0.value()))).collect()
        })
    }

    pub(crate) fn statement(&self, id: &StatementId) -> Result<Option<Vec<u8>>, StoreError> {
        self.read("read a statement", |txn| {
            let Some(number) = txn.open_table(STATEMENT_INDEX)?.get(id.0)?.map(|n| n.value()) else {
                return Ok(None);
            };
            let row = txn.open_table(STATEMENTS)?.get(number)?;
            Ok(row.map(|row| row.value().1.to_vec()))
        })
    }

    pub(crate) fn statements(&self) -> Result<Vec<(StatementId, Vec<u8>)>, StoreError> {
        self.read("list statements", |txn| {
            let table = txn.open_table(STATEMENTS)?;
            let mut out = Vec::with_capacity(usize::try_from(table.len()?).unwrap_or(0));
            for row in table.iter()? {
                let (_, row) = row?;
                let (id, bytes) = row.value();
                out.push((StatementId(id), bytes.to_vec()));
            }
            Ok(out)
        })
    }

    pub(crate) fn setting(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read("read a setting", |txn| {
            let row = txn.open_table(SETTINGS)?.get(key)?;
            Ok(row.map(|row| row.value().to_vec()))
        })
    }

    pub(crate) fn set_setting(&self, key: &str, value: Option<&[u8]>) -> Result<(), StoreError> {
        self.add("write a setting", |txn| {
            let mut table = txn.open_table(SETTINGS)?;
            match value {
                Some(value) => table.insert(key, value)?,
                None => table.remove(key)?,
            };
            Ok(())
        })
    }

    fn read<T>(
        &self,
        op: &'static str,
        f: impl Fn(&ReadTransaction) -> Result<T, MetaError>,
    ) -> Result<T, StoreError> {
        self.run(op, |db| f(&db.begin_read().map_err(redb::Error::from)?))
    }

    /// A transaction that adds: refused while the disk is as good as full.
    fn add<T>(
        &self,
        op: &'static str,
        f: impl Fn(&WriteTransaction) -> Result<T, MetaError>,
    ) -> Result<T, StoreError> {
        let available_bytes =
            fs::available_bytes(&self.path).map_err(at(&self.path, "ask for free space of"))?;
        if available_bytes < RESERVE_BYTES {
            return Err(StoreError::NoSpace {
                path: self.path.clone(),
                needed_bytes: RESERVE_BYTES,
                available_bytes,
            });
        }
        self.write(op, f)
    }

    /// A transaction that must work on a full disk: the reserve is given back for it.
    fn urgent<T>(
        &self,
        op: &'static str,
        f: impl Fn(&WriteTransaction) -> Result<T, MetaError>,
    ) -> Result<T, StoreError> {
        let short = fs::available_bytes(&self.path).is_ok_and(|available| available < RESERVE_BYTES);
        let given = short && self.reserve.give_back();
        match self.write(op, &f) {
            Err(StoreError::NoSpace { .. }) if !given && self.reserve.give_back() => self.write(op, f),
            done => done,
        }
    }

    /// One durable transaction; an error in `f` rolls it back.
    fn write<T>(
        &self,
        op: &'static str,
        f: impl Fn(&WriteTransaction) -> Result<T, MetaError>,
    ) -> Result<T, StoreError> {
        self.run(op, |db| {
            let txn = db.begin_write().map_err(redb::Error::from)?;
            let out = f(&txn)?;
            txn.commit().map_err(redb::Error::from)?;
            Ok(out)
        })
    }

    /// After a write that failed (others filled the disk to its last byte), redb refuses all work until it is opened
    /// again: that is done here, once per call, so that nobody has to restart the daemon when there is room again.
    fn run<T>(
        &self,
        op: &'static str,
        f: impl Fn(&Database) -> Result<T, MetaError>,
    ) -> Result<T, StoreError> {
        let attempt = || {
            let opened = self.db.read().unwrap_or_else(PoisonError::into_inner);
            let refused = || Err(MetaError(redb::Error::PreviousIo));
            (opened.times, opened.db.as_ref().map_or_else(refused, &f))
        };
        let result = match attempt() {
            (times, Err(MetaError(redb::Error::PreviousIo))) => self.reopen(times).and_then(|()| attempt().1),
            (_, result) => result,
        };
        result.map_err(|MetaError(e)| meta_error(&self.path, op)(e))
    }

    /// Opens the database again, unless somebody did since it was the one opened as number `times`.
    fn reopen(&self, times: u64) -> Result<(), MetaError> {
        let mut opened = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if opened.times == times {
            if !self.path.exists() {
                // Never an empty one in its place.
                return Err(MetaError(redb::Error::Io(std::io::ErrorKind::NotFound.into())));
            }
            // The old one holds the file's lock.
            opened.db = None;
            opened.db = Some((self.open)(&self.path).map_err(|e| MetaError(e.into()))?);
            opened.times += 1;
        }
        Ok(())
    }
}

/// Carries redb's two error types of table access through `?`.
struct MetaError(redb::Error);

impl From<redb::Error> for MetaError {
    fn from(e: redb::Error) -> Self {
        Self(e)
    }
}

impl From<TableError> for MetaError {
    fn from(e: TableError) -> Self {
        Self(e.into())
    }
}

impl From<redb::StorageError> for MetaError {
    fn from(e: redb::StorageError) -> Self {
        Self(e.into())
    }
}

fn meta_error<'a>(path: &'a Path, op: &'static str) -> impl Fn(redb::Error) -> StoreError + 'a {
    move |source| match source {
        redb::Error::Io(e) if is_full(&e) => at(path, op)(e),
        source => StoreError::Meta { path: path.to_owned(), op, source: Box::new(source) },
    }
}

impl std::fmt::Debug for Meta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meta").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
