//! Every limit of the scheduler in one place.

/// Limits and measures of one fetch. Times are milliseconds, sizes bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchConfig {
    /// Shortest piece; a power of two and a multiple of 16 KiB.
    pub piece_bytes_min: u64,
    /// Longest piece; a power of two and a multiple of 16 KiB.
    pub piece_bytes_max: u64,
    /// Pieces grow until a manifest has no more than this many (the ceiling on their length goes first).
    pub piece_count_max: u64,
    /// The leading layers that together fit in this are fetched first and in order: contract, configuration
    /// and tokenizer of an ordinary model.
    pub head_bytes_max: u64,
    /// Fetches in flight from one peer. A peer with more connections than this gets one per connection.
    pub slots_per_peer_max: u32,
    /// Most connections of one peer that count for the line above.
    pub connections_per_peer_max: u32,
    /// Fetches in flight from all peers.
    pub slots_max: usize,
    /// Bytes in flight from all peers. One piece is always allowed.
    pub in_flight_bytes_max: u64,
    /// Peers known at a time; declarations of further ones are ignored until one is gone.
    pub peers_max: usize,
    /// Rate assumed of one fetch from a peer that was not yet measured.
    pub rate_initial_bytes_per_s: u64,
    /// A fetch may take this many times what the peer's measured rate promises ...
    pub deadline_factor: u32,
    /// ... but never less than this ...
    pub deadline_ms_min: u64,
    /// ... or more than this.
    pub deadline_ms_max: u64,
    /// Duplicates are asked for only once this many pieces or fewer are unfinished.
    pub endgame_pieces_max: usize,
    /// A piece is asked for twice once it takes this many times what the second peer would need ...
    pub hedge_factor: u32,
    /// ... and at least this long.
    pub hedge_ms_min: u64,
    /// Pause after a peer's first failure in a row; doubles with each further one.
    pub backoff_ms: u64,
    /// Longest pause after failures.
    pub backoff_ms_max: u64,
    /// Ban for the first bytes that failed their proof; doubles each time.
    pub ban_ms: u64,
    /// Longest ban.
    pub ban_ms_max: u64,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            piece_bytes_min: 1 << 20,
            piece_bytes_max: 64 << 20,
            piece_count_max: 4_500,
            head_bytes_max: 8 << 20,
            slots_per_peer_max: 4,
            connections_per_peer_max: 16,
            slots_max: 128,
            in_flight_bytes_max: 512 << 20,
            peers_max: 1_024,
            rate_initial_bytes_per_s: 2 << 20,
            deadline_factor: 4,
            deadline_ms_min: 10_000,
            deadline_ms_max: 600_000,
            endgame_pieces_max: 32,
            hedge_factor: 2,
            hedge_ms_min: 500,
            backoff_ms: 250,
            backoff_ms_max: 30_000,
            ban_ms: 600_000,
            ban_ms_max: 24 * 3_600_000,
        }
    }
}
