//! Frames between neighbours of one manifest: who has what, who may ask, who asks. One stream per neighbour and manifest.
//!
//! Each frame is a u32 length, big-endian, then postcard. A newer version may append fields to a frame and add kinds;
//! unknown kinds are skipped.

use serde::{Deserialize, Serialize};

use super::bao::GroupSet;
use crate::swarm::{PieceNo, RackId};

/// Largest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Most pieces in one list of a frame.
pub const PIECES_MAX: usize = 65_536;
/// Most range boundaries of one layer in a bitfield; what is beyond is not declared.
pub const BOUNDARIES_MAX: usize = 100_000;

/// What neighbours tell each other about one manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// First on each stream, both ways.
    Begin {
        /// Length of a piece in bytes; both sides cut alike or do not work together.
        piece_bytes: u64,
        /// The sender's rack.
        rack: Option<RackId>,
        /// The sender is a first holder that releases each piece once: not a source for its whole rack yet.
        releasing: bool,
    },
    /// What the sender has, in addition to what it said before: layers by place in `Manifest::layers()`, with groups.
    Bitfield {
        /// By layer.
        layers: Vec<(u32, GroupSet)>,
    },
    /// Whole pieces that the sender has now, and how busy it is.
    News {
        /// Stored since the last news.
        held: Vec<PieceNo>,
        /// Fetches that it has in flight; 255 and more as 255.
        load: u8,
    },
    /// Pieces that the sender fetches from outside the rack, told within the rack: others need not.
    Coming {
        /// Which.
        pieces: Vec<PieceNo>,
    },
    /// Pieces that the sender no longer has, or no longer fetches.
    Lost {
        /// Which.
        pieces: Vec<PieceNo>,
    },
    /// The receiver may ask for one piece now: this one, or one of its choice.
    Grant {
        /// Which, where the sender cares.
        piece: Option<PieceNo>,
    },
    /// The receiver's grant is of no use now.
    Decline {
        /// Which grant.
        piece: Option<PieceNo>,
        /// Fetches that the sender has in flight.
        load: u8,
    },
    /// The sender would like to be granted this piece.
    Ask {
        /// Which.
        piece: PieceNo,
        /// A loader waits for it.
        urgent: bool,
    },
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not the encoding.
    #[error("a frame does not parse: {0}")]
    Form(&'static str),
    /// Over a limit.
    #[error("a frame is over a limit: {0}")]
    TooBig(&'static str),
}

impl Frame {
    /// The bytes to send, length prefix included.
    pub fn encode(&self) -> Vec<u8> {
        let body = match self {
            Frame::Begin { piece_bytes, rack, releasing } => body(BEGIN, &(piece_bytes, rack, releasing)),
            Frame::Bitfield { layers } => {
                let layers: Vec<(u32, &[u64])> = layers
                    .iter()
                    .map(|(layer, groups)| {
                        let boundaries = groups.boundaries();
                        (*layer, &boundaries[..boundaries.len().min(BOUNDARIES_MAX)])
                    })
                    .collect();
                body(BITFIELD, &layers)
            }
            Frame::News { held, load } => body(NEWS, &(held, load)),
            Frame::Coming { pieces } => body(COMING, pieces),
            Frame::Lost { pieces } => body(LOST, pieces),
            Frame::Grant { piece } => body(GRANT, piece),
            Frame::Decline { piece, load } => body(DECLINE, &(piece, load)),
            Frame::Ask { piece, urgent } => body(ASK, &(piece, urgent)),
        };
        let len = u32::try_from(body.len()).expect("frames are far below 4 GiB: their lists are bounded");
        [&len.to_be_bytes()[..], &body].concat()
    }

    /// Reads a frame's body, without its length prefix. `None` for kinds of a newer version.
    ///
    /// # Errors
    /// Garbage, or lists over their limits.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(FrameError::TooBig("bytes"));
        }
        let (&kind, rest) = bytes.split_first().ok_or(FrameError::Form("it is empty"))?;
        Ok(Some(match kind {
            BEGIN => {
                let (piece_bytes, rack, releasing) = read(rest, "begin")?;
                Frame::Begin { piece_bytes, rack, releasing }
            }
            BITFIELD => {
                let wire: Vec<(u32, Vec<u64>)> = read(rest, "bitfield")?;
                let mut layers = Vec::with_capacity(wire.len());
                for (layer, boundaries) in wire {
                    if boundaries.len() > BOUNDARIES_MAX {
                        return Err(FrameError::TooBig("range boundaries"));
                    }
                    let groups = GroupSet::new(boundaries.into())
                        .ok_or(FrameError::Form("range boundaries are out of order"))?;
                    if layers.last().is_some_and(|(last, _)| *last >= layer) {
                        return Err(FrameError::Form("layers are out of order, or one is there twice"));
                    }
                    layers.push((layer, groups));
                }
                Frame::Bitfield { layers }
            }
            NEWS => {
                let (held, load) = read(rest, "news")?;
                Frame::News { held: bounded(held)?, load }
            }
            COMING => Frame::Coming { pieces: bounded(read(rest, "coming")?)? },
            LOST => Frame::Lost { pieces: bounded(read(rest, "lost")?)? },
            GRANT => Frame::Grant { piece: read(rest, "grant")? },
            DECLINE => {
                let (piece, load) = read(rest, "decline")?;
                Frame::Decline { piece, load }
            }
            ASK => {
                let (piece, urgent) = read(rest, "ask")?;
                Frame::Ask { piece, urgent }
            }
            _ => return Ok(None),
        }))
    }
}

const BEGIN: u8 = 0;
const BITFIELD: u8 = 1;
const NEWS: u8 = 2;
const COMING: u8 = 3;
const LOST: u8 = 4;
const GRANT: u8 = 5;
const DECLINE: u8 = 6;
const ASK: u8 = 7;

fn body<T: Serialize + ?Sized>(kind: u8, value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![kind]).expect("encoding plain data to memory does not fail")
}

/// Bytes that a newer version appended are ignored.
fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &'static str) -> Result<T, FrameError> {
    postcard::take_from_bytes(bytes).map(|(value, _newer)| value).map_err(|_| FrameError::Form(what))
}

fn bounded(pieces: Vec<PieceNo>) -> Result<Vec<PieceNo>, FrameError> {
    if pieces.len() > PIECES_MAX { Err(FrameError::TooBig("pieces")) } else { Ok(pieces) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples() -> Vec<Frame> {
        vec![
            Frame::Begin { piece_bytes: 1 << 20, rack: Some(RackId(7)), releasing: true },
            Frame::Bitfield { layers: vec![(0, GroupSet::from(0..4)), (9, GroupSet::from(2..))] },
            Frame::News { held: vec![0, 3, 4_000_000_000], load: 4 },
            Frame::Coming { pieces: vec![1] },
            Frame::Lost { pieces: vec![] },
            Frame::Grant { piece: Some(300) },
            Frame::Decline { piece: None, load: 3 },
            Frame::Ask { piece: 5, urgent: true },
        ]
    }

    #[test]
    fn frames_come_back_and_newer_fields_are_ignored() {
        for frame in samples() {
            let bytes = frame.encode();
            let (len, body) = bytes.split_at(4);
            assert_eq!(u32::from_be_bytes(len.try_into().expect("four")) as usize, body.len());
            assert_eq!(Frame::parse(body), Ok(Some(frame.clone())));
            let newer = [body, &[1, 2, 3]].concat();
            assert_eq!(Frame::parse(&newer), Ok(Some(frame)), "appended fields");
        }
        assert_eq!(Frame::parse(&[200, 1, 2]), Ok(None), "a newer kind");
        assert_eq!(Frame::Grant { piece: Some(300) }.encode(), [0, 0, 0, 4, GRANT, 1, 0xac, 0x02], "golden");
    }

    #[test]
    fn absurd_lists_are_refused() {
        assert!(Frame::parse(&[]).is_err());
        assert!(Frame::parse(&vec![NEWS; FRAME_BYTES_MAX + 1]).is_err());
        let many = Frame::Lost { pieces: vec![1; PIECES_MAX + 1] }.encode();
        assert_eq!(Frame::parse(&many[4..]), Err(FrameError::TooBig("pieces")));
        // A length of 2^60 pieces in a frame of a few bytes.
        assert!(Frame::parse(&[LOST, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
        let disorder = body(BITFIELD, &vec![(0u32, vec![5u64, 4])]);
        assert!(Frame::parse(&disorder).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frame::parse(&bytes);
        }
    }
}
