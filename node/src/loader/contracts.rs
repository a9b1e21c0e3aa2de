//! Contracts as an open answers with them, kept as text so that the next open of the same model parses nothing.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::value::RawValue;
use weighlock_cache::SealedLayer;
use weighlock_protocol::LayerId;
use weighlock_protocol::manifest::{Contract, Manifest};

use crate::daemon::Node;
use crate::error::{Error, Result};

/// Contracts larger than this leave out their tensor index in an answer; a loader reads it from the files.
const INLINE_BYTES_MAX: u64 = 4 << 20;
/// Text that is kept of all contracts together. What was kept first goes first.
const KEPT_BYTES_MAX: usize = 8 << 20;

/// Texts of contracts that were answered with. What they are kept by is the digest of their bytes, so none gets old.
#[derive(Debug, Default)]
pub(crate) struct Contracts(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    texts: BTreeMap<LayerId, Arc<RawValue>>,
    order: VecDeque<LayerId>,
    bytes: usize,
}

impl Contracts {
    /// The contract of a manifest, which `sealed` holds: as it was written, but without its tensor index when it is large.
    /// Blocks on the disk for one that is not kept.
    ///
    /// # Errors
    /// It cannot be read, or is no contract.
    pub(super) fn text(&self, manifest: &Manifest, sealed: SealedLayer) -> Result<Arc<RawValue>> {
        if let Some(kept) = self.kept().texts.get(&sealed.id) {
            return Ok(kept.clone());
        }
        let text: Arc<RawValue> = read(manifest, sealed.file)?.1.into();
        self.kept().keep(sealed.id, text.clone());
        Ok(text)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn keep(&mut self, id: LayerId, text: Arc<RawValue>) {
        self.bytes += text.get().len();
        if let Some(before) = self.texts.insert(id, text) {
            self.bytes -= before.get().len();
        } else {
            self.order.push_back(id);
        }
        while self.bytes > KEPT_BYTES_MAX
            && let Some(first) = self.order.pop_front()
        {
            self.bytes -= self.texts.remove(&first).map_or(0, |text| text.get().len());
        }
    }
}

/// The contract, if it is here; without its tensor index when that is large. Blocks on the disk.
pub(crate) fn contract(node: &Node, manifest: &Manifest) -> Result<Option<Contract>> {
    let id = manifest.contract().id;
    if node.store.layer(&id).map_err(Error::from)?.is_none() {
        return Ok(None);
    }
    let sealed = node.store.open_sealed(&id).map_err(Error::from)?;
    Ok(Some(read(manifest, sealed.file)?.0))
}

fn read(manifest: &Manifest, mut file: File) -> Result<(Contract, Box<RawValue>)> {
    let layer = manifest.contract();
    let broken = |e: &dyn fmt::Display| {
        Error::integrity(format!("the contract of {} does not parse: {e}", manifest.digest()))
    };
    if layer.size > INLINE_BYTES_MAX {
        let mut contract: Contract =
            serde_json::from_reader(std::io::BufReader::new(file)).map_err(|e| broken(&e))?;
        contract.tensors.clear();
        let text = serde_json::value::to_raw_value(&contract).map_err(Error::internal)?;
        return Ok((contract, text));
    }
    // Much faster than from a reader.
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| Error::system(format!("cannot read {}", layer.id), &e))?;
    let text = String::from_utf8(bytes).map_err(|e| broken(&e))?;
    let contract = serde_json::from_str(&text).map_err(|e| broken(&e))?;
    Ok((contract, RawValue::from_string(text).map_err(|e| broken(&e))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: usize) -> Arc<RawValue> {
        RawValue::from_string(format!("\"{}\"", "x".repeat(bytes - 2))).expect("JSON").into()
    }

    #[test]
    fn what_was_kept_first_goes_first_and_the_bytes_are_bounded() {
        let mut kept = Kept::default();
        let ids: Vec<LayerId> = (0..5u8).map(|n| LayerId::of(&[n])).collect();
        for id in &ids {
            kept.keep(*id, text(KEPT_BYTES_MAX / 4));
            // Twice at once: both openers met none.
            kept.keep(*id, text(KEPT_BYTES_MAX / 4));
        }
        assert_eq!(kept.bytes, KEPT_BYTES_MAX);
        assert_eq!(
            kept.texts.keys().copied().collect::<std::collections::BTreeSet<_>>(),
            ids[1..].iter().copied().collect()
        );
        kept.keep(ids[0], text(KEPT_BYTES_MAX + 1));
        assert_eq!((kept.bytes, kept.texts.len(), kept.order.len()), (0, 0, 0));
    }
}
