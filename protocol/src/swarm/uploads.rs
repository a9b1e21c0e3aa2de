//! Uploads: each is a job that is promised, waits or runs, whoever moves it on.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use smallvec::SmallVec;

use super::bucket::Bucket;
use super::conduct::Seat;
use super::io::{LinkId, PieceNo, RequestId, WorkId};
use super::rows::Rows;
use crate::id::{KeyId, LayerId};
use crate::time::Time;

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Promised,
    Waiting,
    Running,
}

/// An upload. What all of them are searched for stands first.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Job {
    pub(super) peer: KeyId,
    pub(super) seat: Seat,
    /// The promise: on which link, for which manifest and piece.
    pub(super) link: Option<LinkId>,
    pub(super) work: Option<WorkId>,
    pub(super) piece: Option<PieceNo>,
    pub(super) state: State,
    /// The piece is released to this neighbour.
    pub(super) release: bool,
    /// It took so long that the piece goes to another neighbour, too.
    pub(super) overdue: bool,
    pub(super) urgent: bool,
    pub(super) requests: SmallVec<[RequestId; 1]>,
    /// All that was asked for, so that nothing is asked twice under one promise.
    pub(super) ranges: SmallVec<[(RequestId, LayerId, Range<u64>); 1]>,
    pub(super) sent_bytes: u64,
    pub(super) complete: bool,
    pub(super) since: Time,
}

/// Owns uploads.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    pub(super) jobs: Rows<u64, Job>,
    /// The job of each request, and the bytes that rates were charged for it ahead of time; in no order.
    pub(super) by_request: Vec<(RequestId, u64, u64)>,
    /// Promised jobs whose requests are here.
    pub(super) waiting: VecDeque<u64>,
    /// Jobs without a promise.
    pub(super) unpromised: VecDeque<u64>,
    pub(super) next: u64,
    pub(super) running: usize,
    /// Those among them without a promise.
    pub(super) running_unpromised: usize,
    /// Promised, or waiting with a promise.
    pub(super) ahead: usize,
    pub(super) bucket: Option<Bucket>,
    /// What the release of a piece takes, smoothed.
    pub(super) release_took: Option<Duration>,
}

impl Uploads {
    pub(super) fn new(rate: Option<u64>, now: Time) -> Self {
        Self { bucket: rate.map(|rate| Bucket::new(rate, rate / 4, now)), ..Self::default() }
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }

    pub(super) fn requests(&self) -> usize {
        self.by_request.len()
    }

    pub(super) fn promised(&self) -> usize {
        self.ahead
    }
}
