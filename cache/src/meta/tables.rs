//! The tables of the embedded database. A change of a table's form is a new name beside the old one.

use redb::TableDefinition;

/// Newest format of the store as a whole; see [`META`], key `format`.
pub(super) const FORMAT: u32 = 2;
/// The key in [`META`] under which the format stands.
pub(super) const FORMAT_KEY: &str = "format";

/// Size, SHA-256 if proven, modification time in nanoseconds, inode, when its bytes were proven in seconds since 1970.
pub(super) type LayerRow = (u64, Option<[u8; 32]>, i64, u64, u64);

/// Facts about the store itself.
pub(super) const META: TableDefinition<&str, u32> = TableDefinition::new("meta_v1");
/// Sealed layers by BLAKE3.
pub(super) const LAYERS: TableDefinition<[u8; 32], LayerRow> = TableDefinition::new("layers_v2");
/// Layers that were found damaged and are not whole again, as JSON.
pub(super) const DAMAGED: TableDefinition<[u8; 32], &[u8]> = TableDefinition::new("damaged_v1");
/// Manifest bytes by digest.
pub(super) const MANIFESTS: TableDefinition<[u8; 32], &[u8]> = TableDefinition::new("manifests_v1");
/// Manifests whose content this host wants to keep.
pub(super) const HELD: TableDefinition<[u8; 32], ()> = TableDefinition::new("held_v1");
/// Statements in order of arrival.
pub(super) const STATEMENTS: TableDefinition<u64, ([u8; 32], &[u8])> = TableDefinition::new("statements_v1");
/// Arrival number of a statement by id.
pub(super) const STATEMENT_INDEX: TableDefinition<[u8; 32], u64> = TableDefinition::new("statement_index_v1");
/// Small values of the node by key.
pub(super) const SETTINGS: TableDefinition<&str, &[u8]> = TableDefinition::new("settings_v1");
/// Why artifacts are pinned, as JSON.
pub(super) const PINS: TableDefinition<[u8; 32], &[u8]> = TableDefinition::new("pins_v1");
/// When held artifacts were last used, Unix seconds.
pub(super) const USED: TableDefinition<[u8; 32], u64> = TableDefinition::new("used_v1");
/// Layers without a record whose files are being removed.
pub(super) const GONE: TableDefinition<[u8; 32], ()> = TableDefinition::new("gone_v1");
/// Heads by channel; each is written with the statement that moved it.
pub(super) const HEADS: TableDefinition<&str, &[u8]> = TableDefinition::new("heads_v1");
