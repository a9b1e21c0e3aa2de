//! The ledger of a store that is opened again: all its statements, in whatever order they lie there.

use tracing::warn;
use weighlock_cache::Store;
use weighlock_protocol::StatementId;
use weighlock_protocol::statement::{Applied, Envelope, Ledger};

use crate::error::{Error, Result};

/// Puts all statements of a store into a ledger.
pub(super) fn fill(store: &Store, ledger: &mut Ledger) -> Result<()> {
    let mut waiting = store.statements().map_err(Error::from)?;
    loop {
        let count = waiting.len();
        let (mut ids, mut checked) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for (id, bytes) in waiting {
            let stored = Envelope::parse(&bytes).map_err(|e| e.to_string());
            match stored.and_then(|envelope| ledger.check_stored(&envelope).map_err(|e| e.to_string())) {
                Ok(one) => {
                    ids.push(id);
                    checked.push(one);
                }
                Err(e) => warn!(statement = %id.short(), error = e, "left out a stored statement"),
            }
        }
        // What there was no room for may have come, in its time, after a root that made some: again, as long as it helps.
        let outcomes = ids.into_iter().zip(ledger.apply_all(checked));
        let refused: Vec<(StatementId, Applied)> =
            outcomes.filter(|(_, outcome)| matches!(outcome, Applied::Refused(_))).collect();
        if refused.is_empty() {
            return Ok(());
        }
        if refused.len() == count {
            for (id, outcome) in refused {
                warn!(statement = %id.short(), ?outcome, "left out a stored statement");
            }
            return Ok(());
        }
        waiting = Vec::with_capacity(refused.len());
        for (id, _) in refused {
            waiting.extend(store.statement(&id).map_err(Error::from)?.map(|bytes| (id, bytes)));
        }
    }
}
