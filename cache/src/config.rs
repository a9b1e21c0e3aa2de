//! The knobs and limits of one store.

/// When a sealed layer is proven again before it is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyOnRead {
    /// When its size, modification time or inode differ from the record made at sealing.
    #[default]
    Changed,
    /// Every time it is opened.
    Always,
}

/// Configuration of a [`Store`](crate::Store). Every limit of it is here.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// When sealed layers are proven again.
    pub verify_on_read: VerifyOnRead,
    /// Bytes that imports and new partial layers leave free on the file system.
    pub free_floor_bytes: u64,
    /// Bytes that layers, partial layers and copies in directories may take; 0 is no limit.
    pub quota_bytes: u64,
    /// Bytes that are kept for the database and given back when the disk is full; 0 is none.
    pub metadata_reserve_bytes: u64,
    /// Seconds that a begun layer, or one of no artifact, stays without being written to.
    pub partial_keep_s: u64,
    /// Seconds that a directory counts as used after it was handed out.
    pub view_keep_s: u64,
    /// Seconds that a damaged layer stays in quarantine.
    pub quarantine_keep_s: u64,
    /// Bytes of files that are kept aside because they are not the layers in whose place they lay, oldest gone first.
    pub quarantine_bytes_max: u64,
    /// Memory that the embedded database may use as cache, in bytes.
    pub meta_cache_bytes_max: usize,
    /// Files that one import reads at the same time. Each takes up to three threads and
    /// [`import_block_bytes`](Self::import_block_bytes) times four of memory.
    pub import_files_max: usize,
    /// Bytes read, hashed and written at a time by an import: a power of two, at least 64 KiB.
    pub import_block_bytes: usize,
    /// Files above which an import syncs the whole file system once instead of each file.
    pub sync_each_max: usize,
    /// Most files kept in quarantine.
    pub quarantine_files_max: usize,
    /// Stands for the kernel's boot id; `None` reads it from the kernel.
    pub boot_id: Option<String>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            verify_on_read: VerifyOnRead::Changed,
            free_floor_bytes: 64 << 20,
            quota_bytes: 0,
            metadata_reserve_bytes: 0,
            partial_keep_s: 86_400,
            view_keep_s: 86_400,
            quarantine_keep_s: 30 * 86_400,
            quarantine_bytes_max: 16 << 30,
            meta_cache_bytes_max: 16 << 20,
            import_files_max: cores.clamp(1, 8),
            import_block_bytes: 2 << 20,
            sync_each_max: 64,
            quarantine_files_max: 16,
            boot_id: None,
        }
    }
}
