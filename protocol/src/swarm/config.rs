//! Every limit of the swarm in one place.

/// Limits and measures of one host's swarm. Times are milliseconds, sizes bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwarmConfig {
    /// Shortest piece; a power of two and a multiple of 16 KiB. The same on all hosts.
    pub piece_bytes_min: u64,
    /// Longest piece; a power of two and a multiple of 16 KiB. The same on all hosts.
    pub piece_bytes_max: u64,
    /// Pieces grow until a manifest has no more than this many (the ceiling on their length goes first). The same on
    /// all hosts.
    pub piece_count_max: u64,
    /// Links that a host opens by itself until it has this many.
    pub neighbours_target: usize,
    /// Links that it accepts.
    pub neighbours_max: usize,
    /// Hosts that are remembered as candidates, per manifest.
    pub candidates_max: usize,
    /// Pause before a host that refused a link is tried again; doubles each time.
    pub reconnect_ms: u64,
    /// Uploads that run at a time.
    pub uploads_max: usize,
    /// The same while this host, a first holder, releases pieces: its uplink is what everyone waits for, so it must be
    /// full although receivers share their downlinks evenly.
    pub uploads_release_max: usize,
    /// Uploads to one neighbour that are promised or run at a time; what a loader waits for comes beside them. More would
    /// bring an only receiver no more bytes, but each piece later.
    pub uploads_per_peer_max: u32,
    /// A first holder that has released everything offers nothing by itself for this share, in thousandths, of the time
    /// that it took: the others finish among themselves meanwhile, and it sends one copy. Who asks is served.
    pub release_rest_permille: u32,
    /// A first holder releases to a neighbour that takes less than the one in the middle, divided by this, only if there
    /// is no other.
    pub slow_factor: u32,
    /// A piece whose release takes this many times as long as usual is released to another neighbour, too.
    pub release_overdue_factor: u32,
    /// Pieces that are promised beyond those, so that no upload slot waits for a round trip.
    pub grants_ahead_max: usize,
    /// Requests of one peer, made without a promise, that wait here; further ones are refused.
    pub requests_per_peer_max: usize,
    /// Such requests of all peers.
    pub requests_max: usize,
    /// Refusals in a row before a peer that goes on asking is banned.
    pub refusals_max: usize,
    /// Uploads without a promise that run at a time, while nothing that was promised waits.
    pub unpromised_max: usize,
    /// Pieces that one peer may have asked for by name.
    pub asks_per_peer_max: usize,
    /// A promise that is not used for this long is taken back.
    pub grant_ms: u64,
    /// A neighbour that declined is offered nothing for this long, unless it has news.
    pub declined_ms: u64,
    /// Fetches in flight up to which offers of any piece are taken, all manifests together.
    pub downloads_aim: usize,
    /// Fetches in flight, all manifests together: beyond the aim only pieces that are offered by name.
    pub downloads_max: usize,
    /// Pieces asked for by name and not yet granted, per manifest.
    pub asks_max: usize,
    /// An ask that is not answered for this long is made elsewhere.
    pub ask_ms: u64,
    /// So many asks a first holder that is still releasing may let lie before it counts as silent.
    pub releasing_ignored_max: u32,
    /// Without any fetch in flight for this long, a host asks for pieces by name.
    pub starve_ms: u64,
    /// Bytes in flight. One piece is always allowed.
    pub in_flight_bytes_max: u64,
    /// Payload bytes per second to all peers. None: as fast as it goes.
    pub upload_bytes_per_s: Option<u64>,
    /// Payload bytes per second to one peer.
    pub upload_per_peer_bytes_per_s: Option<u64>,
    /// Payload bytes per second from all peers.
    pub download_bytes_per_s: Option<u64>,
    /// News of a piece that hardly any neighbour has is gathered for half of what a piece takes, longer the more pieces
    /// there are, up to eight pieces; other news for what [`SwarmConfig::downloads_aim`] pieces take; none for longer
    /// than this. With a promise comes what its receiver was not told yet.
    pub news_ms_max: u64,
    /// A piece that other racks have and this one lacks is fetched by the next host in its order after this long.
    pub rack_turn_ms: u64,
    /// Rate assumed of a peer that was not yet measured.
    pub rate_initial_bytes_per_s: u64,
    /// A fetch may take this many times what the peer's measured rate promises ...
    pub deadline_factor: u32,
    /// ... but never less than this ...
    pub deadline_ms_min: u64,
    /// ... or more than this.
    pub deadline_ms_max: u64,
    /// A piece may be asked for twice only once this many pieces or fewer are unfinished.
    pub endgame_pieces_max: usize,
    /// A piece is asked for twice once it takes this many times what the second peer would need ...
    pub hedge_factor: u32,
    /// ... and at least this long.
    pub hedge_ms_min: u64,
    /// Pause after a peer's first failure in a row; doubles with each further one.
    pub backoff_ms: u64,
    /// Longest pause after failures.
    pub backoff_ms_max: u64,
    /// Failures in a row of one kind before a peer is banned for it.
    pub strikes_max: u32,
    /// Ban for the first offence; doubles each time.
    pub ban_ms: u64,
    /// Longest ban.
    pub ban_ms_max: u64,
    /// Peers whose conduct is remembered.
    pub peers_max: usize,
    /// Layers and ends of ranges that a host declares of a manifest when it links, and that are remembered of a neighbour:
    /// what is beyond is told piece by piece as it becomes whole. More at once would count as a flood.
    pub declared_max: usize,
    /// Frames per second that a link may send on average.
    pub frames_per_s_max: u32,
    /// Frames that it may send at once.
    pub frames_burst_max: u32,
}

impl Default for SwarmConfig {
    fn default() -> Self {
        Self {
            piece_bytes_min: 1 << 20,
            piece_bytes_max: 64 << 20,
            piece_count_max: 4_500,
            neighbours_target: 20,
            neighbours_max: 30,
            candidates_max: 20_000,
            reconnect_ms: 1_000,
            uploads_max: 6,
            uploads_release_max: 8,
            uploads_per_peer_max: 4,
            release_rest_permille: 125,
            slow_factor: 2,
            release_overdue_factor: 4,
            grants_ahead_max: 1,
            requests_per_peer_max: 64,
            requests_max: 1_024,
            refusals_max: 1_024,
            unpromised_max: 2,
            asks_per_peer_max: 16,
            grant_ms: 5_000,
            declined_ms: 500,
            downloads_aim: 7,
            downloads_max: 14,
            asks_max: 4,
            ask_ms: 5_000,
            releasing_ignored_max: 6,
            starve_ms: 200,
            in_flight_bytes_max: 512 << 20,
            upload_bytes_per_s: None,
            upload_per_peer_bytes_per_s: None,
            download_bytes_per_s: None,
            news_ms_max: 250,
            rack_turn_ms: 1_500,
            rate_initial_bytes_per_s: 2 << 20,
            deadline_factor: 4,
            deadline_ms_min: 10_000,
            deadline_ms_max: 600_000,
            endgame_pieces_max: 64,
            hedge_factor: 2,
            hedge_ms_min: 500,
            backoff_ms: 250,
            backoff_ms_max: 30_000,
            strikes_max: 8,
            ban_ms: 600_000,
            ban_ms_max: 24 * 3_600_000,
            peers_max: 4_096,
            declared_max: 400_000,
            frames_per_s_max: 1_000,
            frames_burst_max: 10_000,
        }
    }
}
