//! Requests for ranges on their way: from the asking host to the server and back.

use std::ops::Range;

use weighlock_protocol::swarm::{Fault, RequestId, SlotId};

use crate::network::FlowId;

/// Where a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The request is on its way.
    Asking,
    /// The server knows it.
    Waiting,
    /// Bytes move.
    Flowing(FlowId),
    /// The server is told to send and does not.
    Withheld,
    /// The last byte, or the refusal, is on its way.
    Landing,
    /// It arrived and is being written.
    Writing,
}

/// A request for a range, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Who asks.
    pub by: u32,
    /// Its name for the fetch. None: it was asked for without a grant and nobody waits for it.
    pub slot: Option<SlotId>,
    /// Who is asked.
    pub server: u32,
    /// Layer by number.
    pub layer: u32,
    /// Groups.
    pub groups: Range<u64>,
    /// Where it is.
    pub stage: Stage,
    /// Bytes of the whole range.
    pub bytes: u64,
    /// Bytes that the flow moves before it ends.
    pub flow_bytes: u64,
    /// The group that the server spoils.
    pub bad: Option<u64>,
    /// Bytes that came.
    pub moved: u64,
    /// Why no more came.
    pub fault: Option<Fault>,
}

/// All transfers of a run. Ids are never used twice, places are.
#[derive(Debug, Default)]
pub struct Transfers {
    places: Vec<(u32, Option<Transfer>)>,
    free: Vec<u32>,
}

impl Transfers {
    /// Adds one.
    pub fn insert(&mut self, transfer: Transfer) -> u64 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.places[place as usize];
        slot.0 += 1;
        slot.1 = Some(transfer);
        u64::from(slot.0) << 32 | u64::from(place)
    }

    /// One that is not over.
    pub fn get(&self, id: u64) -> Option<&Transfer> {
        let (life, transfer) = self.places.get(place(id))?;
        transfer.as_ref().filter(|_| u64::from(*life) == id >> 32)
    }

    /// One that is not over.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut Transfer> {
        let (life, transfer) = self.places.get_mut(place(id))?;
        transfer.as_mut().filter(|_| u64::from(*life) == id >> 32)
    }

    /// Ends one.
    pub fn remove(&mut self, id: u64) -> Option<Transfer> {
        self.get(id)?;
        self.free.push(u32::try_from(place(id)).unwrap_or(0));
        self.places[place(id)].1.take()
    }

    /// All that are not over.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Transfer)> {
        let all = (0u64..).zip(&self.places);
        all.filter_map(|(place, (life, transfer))| Some((u64::from(*life) << 32 | place, transfer.as_ref()?)))
    }
}

/// As the server's state machine knows it.
pub fn request(id: u64) -> RequestId {
    RequestId(id)
}

fn place(id: u64) -> usize {
    (id & u64::from(u32::MAX)) as usize
}
