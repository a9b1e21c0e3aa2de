//! The data plane's requests, byte for byte those of iroh-blobs (ALPN `/iroh-bytes/4`), and our own hello.
//!
//! A request is one byte of kind, then postcard. A get is answered by the layer's size (u64, little-endian) and the
//! BAO encoding of the asked ranges; a tree by the size and the tree's hash pairs ([`tree`](super::tree)); an observe
//! by length-prefixed items for as long as the asker keeps the stream.

use bao_tree::{ChunkNum, ChunkRanges};
use serde::{Deserialize, Serialize};

use super::bao::{GroupSet, LAYER_BYTES_MAX, canonical_chunks, from_chunks, to_chunks};
use crate::id::{ClusterId, LayerId, ManifestDigest};

/// Largest request or observe item, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Our own request kinds, well away from those of iroh-blobs (0..=9).
const KIND_TREE: u8 = 0x42;
const KIND_DOUBT: u8 = 0x43;
/// Kind of [`Request::Link`]. Unlike the others, it does not end the asker's side of the stream: frames follow.
pub const KIND_LINK: u8 = 0x41;
/// Bytes of a link request after its kind: the manifest's digest.
pub const LINK_BYTES: usize = 32;
/// Largest hello, in bytes.
pub const HELLO_BYTES_MAX: usize = 4096;
/// Most range boundaries in one message: what fits in [`MESSAGE_BYTES_MAX`] with room to spare.
pub const BOUNDARIES_MAX: usize = 100_000;

/// ALPN of the data plane between admitted members.
pub const ALPN_DATA: &[u8] = b"weighlock/data/1";
/// ALPN on which a stranger with a ticket may ask to be admitted, and nothing else.
pub const ALPN_JOIN: &[u8] = b"weighlock/join/1";

/// Stream reset codes; the first three are those of iroh-blobs.
pub mod reset {
    /// The asker may not have this.
    pub const PERMISSION: u32 = 1;
    /// Over a limit; ask again later.
    pub const LIMIT: u32 = 2;
    /// This host does not have all of it, or could not read it.
    pub const INTERNAL: u32 = 3;
}

/// Connection close codes.
pub mod close {
    /// Orderly end.
    pub const DONE: u32 = 0;
    /// The other side is not a member of this cluster (any more).
    pub const NOT_A_MEMBER: u32 = 0x10;
    /// It broke the protocol.
    pub const PROTOCOL: u32 = 0x11;
    /// Too many connections.
    pub const LIMIT: u32 = 0x12;
}

/// What a peer asks for on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Send these chunk ranges of a layer.
    Get {
        /// Which layer.
        layer: LayerId,
        /// 1 KiB chunk ranges as asked; may reach past the end, which asks for the last chunk as a proof of size.
        chunks: ChunkRanges,
    },
    /// Tell what is there of a layer, now and as it grows.
    Observe {
        /// Which layer.
        layer: LayerId,
    },
    /// Our own: be neighbours in a manifest's swarm; [`super::swarm::Frame`]s follow on both sides of the stream.
    Link {
        /// Which manifest.
        manifest: ManifestDigest,
    },
    /// Our own: send the tree of a layer, so that the asker can prove bytes that it has from elsewhere.
    Tree {
        /// Which layer.
        layer: LayerId,
    },
    /// Our own: bytes of a layer that came from this host failed verification. It proves nothing: the host reads its
    /// own copy again. There is no answer; a host that does not know it resets the stream.
    Doubt {
        /// Which layer.
        layer: LayerId,
        /// First byte that failed, as far as it is known.
        at: u64,
    },
}

/// Why bytes are not a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not the encoding.
    #[error("request does not parse: {0}")]
    Form(&'static str),
    /// A kind of request that is not served here (push, get-many, hash sequences).
    #[error("request kind is not served: {0}")]
    Unsupported(&'static str),
    /// Over a limit.
    #[error("request has more than {BOUNDARIES_MAX} range boundaries")]
    TooBig,
}

#[derive(Serialize, Deserialize)]
struct GetWire {
    hash: LayerId,
    ranges: Vec<(u64, Vec<u64>)>,
}

#[derive(Serialize, Deserialize)]
struct ObserveWire {
    hash: LayerId,
    ranges: Vec<u64>,
}

/// What a provider has of a layer. The first item on an observe stream is the whole set, later ones are what changed
/// since: with an append-only store, what was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObserveItem {
    /// Size of the layer as far as the provider knows it, in bytes; not proven.
    pub size: u64,
    /// 1 KiB chunks that are there.
    pub chunks: ChunkRanges,
}

#[derive(Serialize, Deserialize)]
struct ObserveItemWire {
    size: u64,
    boundaries: Vec<u64>,
}

impl Request {
    /// A get for whole groups of a layer of `size` bytes.
    pub fn get(layer: LayerId, groups: &GroupSet, size: u64) -> Self {
        Self::Get { layer, chunks: canonical_chunks(groups, size) }
    }

    /// The bytes to send; the sending side of the stream is then finished.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Request::Get { layer, chunks } => {
                let mut ranges = vec![(0, widths(chunks))];
                if !chunks.is_empty() {
                    ranges.push((1, Vec::new()));
                }
                (0, postcard::to_allocvec(&GetWire { hash: *layer, ranges }))
            }
            Request::Observe { layer } => {
                (1, postcard::to_allocvec(&ObserveWire { hash: *layer, ranges: vec![0] }))
            }
            Request::Link { manifest } => (KIND_LINK, postcard::to_allocvec(manifest)),
            Request::Tree { layer } => (KIND_TREE, postcard::to_allocvec(layer)),
            Request::Doubt { layer, at } => (KIND_DOUBT, postcard::to_allocvec(&(layer, at))),
        };
        let mut out = vec![kind];
        out.extend(body.expect("encoding plain data to memory does not fail"));
        out
    }

    /// Reads a request that was sent to its end.
    ///
    /// # Errors
    /// Garbage, unsupported kinds, too many ranges.
    pub fn parse(bytes: &[u8]) -> Result<Self, RequestError> {
        let (&kind, body) = bytes.split_first().ok_or(RequestError::Form("it is empty"))?;
        match kind {
            0 => {
                let get: GetWire =
                    postcard::from_bytes(body).map_err(|_| RequestError::Form("get request is malformed"))?;
                match get.ranges.as_slice() {
                    [(0, widths), (1, rest)] if rest.is_empty() => {
                        Ok(Request::Get { layer: get.hash, chunks: ranges(widths)? })
                    }
                    // Nothing of this blob, nor of those after it.
                    [(0, widths)] if widths.is_empty() => {
                        Ok(Request::Get { layer: get.hash, chunks: ChunkRanges::empty() })
                    }
                    _ => Err(RequestError::Unsupported("more than one blob")),
                }
            }
            1 => {
                let observe: ObserveWire = postcard::from_bytes(body)
                    .map_err(|_| RequestError::Form("observe request is malformed"))?;
                Ok(Request::Observe { layer: observe.hash })
            }
            KIND_LINK => {
                let manifest =
                    postcard::from_bytes(body).map_err(|_| RequestError::Form("link is malformed"))?;
                Ok(Request::Link { manifest })
            }
            KIND_TREE => {
                let layer =
                    postcard::from_bytes(body).map_err(|_| RequestError::Form("tree is malformed"))?;
                Ok(Request::Tree { layer })
            }
            KIND_DOUBT => {
                let (layer, at) =
                    postcard::from_bytes(body).map_err(|_| RequestError::Form("doubt is malformed"))?;
                Ok(Request::Doubt { layer, at })
            }
            8 => Err(RequestError::Unsupported("push")),
            9 => Err(RequestError::Unsupported("get-many")),
            _ => Err(RequestError::Form("unknown kind")),
        }
    }
}

impl ObserveItem {
    /// An item about whole groups.
    pub fn of_groups(groups: &GroupSet, size: u64) -> Self {
        Self { size, chunks: to_chunks(groups) & ChunkRanges::from(..ChunkNum(size.div_ceil(1024).max(1))) }
    }

    /// The whole groups in it, for a layer whose true size is `size`.
    pub fn groups(&self, size: u64) -> GroupSet {
        from_chunks(&self.chunks, size)
    }

    /// The bytes to send, length prefix included. `None` when it would be over [`MESSAGE_BYTES_MAX`].
    pub fn encode(&self) -> Option<Vec<u8>> {
        let boundaries: Vec<u64> = self.chunks.boundaries().iter().map(|chunk| chunk.0).collect();
        if boundaries.len() > BOUNDARIES_MAX {
            return None;
        }
        let body = postcard::to_allocvec(&ObserveItemWire { size: self.size, boundaries }).ok()?;
        let mut out = postcard::to_allocvec(&(body.len() as u64)).ok()?;
        out.extend(body);
        Some(out)
    }

    /// Reads the body of an item, without its length prefix.
    ///
    /// # Errors
    /// Garbage, boundaries out of order, a size over [`LAYER_BYTES_MAX`].
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let wire: ObserveItemWire =
            postcard::from_bytes(body).map_err(|_| RequestError::Form("observe item is malformed"))?;
        if wire.size > LAYER_BYTES_MAX {
            return Err(RequestError::Form("observe item claims an absurd size"));
        }
        if wire.boundaries.len() > BOUNDARIES_MAX {
            return Err(RequestError::TooBig);
        }
        let boundaries = wire.boundaries.into_iter().map(ChunkNum).collect();
        let chunks =
            ChunkRanges::new(boundaries).ok_or(RequestError::Form("range boundaries are out of order"))?;
        Ok(Self { size: wire.size, chunks })
    }
}

/// First message on the first one-way stream that each side of a data connection opens: postcard after a u16 length,
/// big-endian. Unknown capability bits are ignored, so N and N-1 talk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of this message, 1.
    pub version: u16,
    /// Must be the receiver's own.
    pub cluster: ClusterId,
    /// What the sender can do beyond version 1; bits are named as they come.
    pub capabilities: u64,
    /// Software version, for people.
    pub software: String,
}

impl Hello {
    /// The bytes to send, length prefix included.
    pub fn encode(&self) -> Vec<u8> {
        let body = postcard::to_allocvec(self).expect("encoding plain data to memory does not fail");
        let len = u16::try_from(body.len()).expect("a hello is a few dozen bytes");
        [&len.to_be_bytes()[..], &body].concat()
    }

    /// Reads the body, without its length prefix. Bytes that a newer version added at the end are ignored.
    ///
    /// # Errors
    /// Garbage.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let (hello, _newer) =
            postcard::take_from_bytes(body).map_err(|_| RequestError::Form("hello is malformed"))?;
        Ok(hello)
    }
}

/// Boundaries as the widths of alternating spans, the first one deselected.
fn widths(chunks: &ChunkRanges) -> Vec<u64> {
    let mut previous = 0;
    let boundaries = chunks.boundaries().iter();
    boundaries.map(|chunk| chunk.0 - std::mem::replace(&mut previous, chunk.0)).collect()
}

fn ranges(widths: &[u64]) -> Result<ChunkRanges, RequestError> {
    if widths.len() > BOUNDARIES_MAX {
        return Err(RequestError::TooBig);
    }
    let mut at = 0u64;
    let mut boundaries = smallvec::SmallVec::new();
    for (i, &width) in widths.iter().enumerate() {
        if i > 0 && width == 0 {
            return Err(RequestError::Form("range boundaries are out of order"));
        }
        at = at.checked_add(width).ok_or(RequestError::Form("a range boundary overflows"))?;
        boundaries.push(ChunkNum(at));
    }
    ChunkRanges::new(boundaries).ok_or(RequestError::Form("range boundaries are out of order"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_have_the_known_bytes() {
        let layer = LayerId([7; 32]);
        let get = Request::get(layer, &GroupSet::from(1..3), 1 << 20);
        let mut expected = vec![0];
        expected.extend([7; 32]);
        // Two entries: blob 0 with widths [16, 32], then nothing from blob 1 on.
        expected.extend([2, 0, 2, 16, 32, 1, 0]);
        assert_eq!(get.encode(), expected);
        assert_eq!(Request::parse(&expected), Ok(get));
        let nothing = Request::Get { layer, chunks: ChunkRanges::empty() };
        assert_eq!(Request::parse(&nothing.encode()), Ok(nothing));
        let observe = Request::Observe { layer };
        assert_eq!(observe.encode()[33..], [1, 0]);
        assert_eq!(Request::parse(&observe.encode()), Ok(observe));
        let tree = Request::Tree { layer };
        assert_eq!(tree.encode(), [&[0x42], &[7; 32][..]].concat());
        assert_eq!(Request::parse(&tree.encode()), Ok(tree));
        assert!(Request::parse(&[0x42; 32]).is_err(), "a layer id has 32 bytes");
        let doubt = Request::Doubt { layer, at: 300 };
        assert_eq!(doubt.encode(), [&[0x43], &[7; 32][..], &[0xac, 0x02]].concat());
        assert_eq!(Request::parse(&doubt.encode()), Ok(doubt));
        assert!(Request::parse(&[0x43; 33]).is_err(), "it ends with a number");
    }

    #[test]
    fn other_kinds_are_refused() {
        for bad in [&[][..], &[2], &[8, 0], &[9], &[200; 40], &[0; 10]] {
            assert!(Request::parse(bad).is_err(), "{bad:?}");
        }
        let mut hash_seq = vec![0];
        hash_seq.extend([7; 32]);
        hash_seq.extend([1, 0, 1, 0]);
        assert_eq!(Request::parse(&hash_seq), Err(RequestError::Unsupported("more than one blob")));
    }

    #[test]
    fn hello_ignores_what_a_newer_version_appends() {
        let hello =
            Hello { version: 1, cluster: ClusterId([1; 32]), capabilities: 5, software: "0.1.0".into() };
        let mut bytes = hello.encode().split_off(2);
        bytes.extend([1, 2, 3]);
        assert_eq!(Hello::parse(&bytes), Ok(hello));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(&bytes);
            let _ = ObserveItem::parse(&bytes);
            let _ = Hello::parse(&bytes);
        }

        #[test]
        fn observe_items_round_trip(size in 1u64..10_000_000, a in 0u64..700, b in 0u64..700) {
            let groups = GroupSet::from(a.min(b)..a.max(b)) & super::super::bao::all_groups(size);
            let item = ObserveItem::of_groups(&groups, size);
            let bytes = item.encode().expect("small");
            let (len, body) = postcard::take_from_bytes::<u64>(&bytes).expect("prefix");
            prop_assert_eq!(len as usize, body.len());
            let back = ObserveItem::parse(body).expect("valid");
            prop_assert_eq!(back.groups(size), groups);
        }
    }
}
