//! Before a fetch: tensors of the new artifact that older layers of this host have are proven and copied, so that only
//! changed groups travel.
//!
//! The tensor indexes of the contracts say where equal tensors may lie. Nobody is trusted for that: a peer gives the
//! tree of the new layer, which is proven from the layer's id down, and only bytes that hash to it are taken.

mod ask;
mod copy;
mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use weighlock_cache::{PartialLayer, Store};
use weighlock_protocol::LayerId;
use weighlock_protocol::manifest::{Layer, Manifest};
use weighlock_protocol::swarm::LayerWant;
use weighlock_protocol::wire::bao::{GroupSet, bytes_in};
use weighlock_protocol::wire::tree::tree_bytes;

use self::ask::{Answer, Asker, Question};
use self::plan::{LayerPlan, Matcher, TensorIndex};
use super::{Inner, blocking};
use crate::error::{Error, Result};
use crate::local::message::Progress;

/// Limits of looking for tensors that are here already. Past any of them the fetch goes on as without it.
#[derive(Debug, Clone)]
pub struct DeltaLimits {
    /// Held artifacts whose contracts are read.
    pub manifests_max: usize,
    /// Largest contract that is read, in bytes. A tensor takes about 200.
    pub contract_bytes_max: u64,
    /// Smaller layers are fetched as they are.
    pub layer_bytes_min: u64,
    /// Largest tree that is asked for, in bytes: 1/256 of the layer. It goes straight to the disk.
    pub tree_bytes_max: u64,
    /// Longest wait for a peer to begin with an answer, all peers of one question together.
    pub ask_max: Duration,
    /// Longest wait for the next bytes of one peer.
    pub stall: Duration,
    /// Answers may take the time that this many bytes a second need, beside [`ask_max`](Self::ask_max).
    pub rate_bytes_per_s_min: u64,
    /// Local bytes read, proven and written at a time.
    pub batch_bytes: usize,
    /// Local layers that are read from at once, each with two open files.
    pub sources_max: usize,
    /// New layers that stay open with what was taken, each with three open files.
    pub open_max: usize,
}

impl Default for DeltaLimits {
    fn default() -> Self {
        Self {
            manifests_max: 256,
            contract_bytes_max: 16 << 20,
            layer_bytes_min: 1 << 20,
            tree_bytes_max: 1 << 30,
            ask_max: Duration::from_secs(6),
            stall: Duration::from_secs(3),
            rate_bytes_per_s_min: 1 << 20,
            batch_bytes: 4 << 20,
            sources_max: 64,
            open_max: 64,
        }
    }
}

/// Partial layers that are open.
pub(super) type OpenLayers = BTreeMap<LayerId, Arc<PartialLayer>>;

/// Fills what it can of `wants` from layers that are here, and shortens them by that. Those that are complete
/// are in `open` then. Whatever goes wrong only means that more is fetched. Answers the bytes that need not be fetched.
pub(super) async fn apply(
    inner: &Arc<Inner>,
    manifest: &Manifest,
    wants: &mut Vec<LayerWant>,
    open: &mut OpenLayers,
    progress: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> u64 {
    let began = Instant::now();
    let limits = inner.limits.delta.clone();
    if !wants.iter().any(|want| want.size >= limits.layer_bytes_min && !want.missing.is_empty()) {
        return 0;
    }
    let run = Run { inner, manifest, limits, progress, cancel, reused_bytes: 0 };
    let reused_bytes = run.all(wants, open).await.unwrap_or_else(|e| {
        warn!(digest = %manifest.digest(), error = %e, "local tensors are not used");
        0
    });
    if reused_bytes > 0 {
        let seconds = began.elapsed().as_secs_f64();
        info!(digest = %manifest.digest(), reused_bytes, seconds, "took tensors from layers that were here");
    }
    reused_bytes
}

struct Run<'a> {
    inner: &'a Arc<Inner>,
    manifest: &'a Manifest,
    limits: DeltaLimits,
    progress: &'a watch::Sender<Progress>,
    cancel: &'a CancellationToken,
    reused_bytes: u64,
}

impl Run<'_> {
    async fn all(mut self, wants: &mut Vec<LayerWant>, open: &mut OpenLayers) -> Result<u64> {
        let (store, manifest, limits) =
            (self.inner.store.clone(), self.manifest.clone(), self.limits.clone());
        let held = blocking(move || held_contracts(&store, &manifest, &limits)).await?;
        if held.is_empty() || !self.bring_contract(wants, open).await? {
            return Ok(0);
        }
        let sizes: BTreeMap<LayerId, u64> = wants
            .iter()
            .filter(|want| want.size >= self.limits.layer_bytes_min && !want.missing.is_empty())
            .map(|want| (want.layer, want.size))
            .collect();
        let (store, contract, limits) =
            (self.inner.store.clone(), self.manifest.contract().id, self.limits.clone());
        let plans = blocking(move || make_plans(&store, &contract, &held, sizes, &limits)).await?;
        if !plans.is_empty() {
            self.show(wants);
        }
        for plan in plans {
            if self.cancel.is_cancelled() {
                break;
            }
            let Some(want) = wants.iter_mut().find(|want| want.layer == plan.layer) else { continue };
            let candidates = &plan.covered() & &want.missing;
            let tree_bytes = tree_bytes(plan.size);
            // The tree must be worth its bytes.
            if tree_bytes > self.limits.tree_bytes_max || bytes_in(&candidates, plan.size) < 2 * tree_bytes {
                continue;
            }
            let (store, layer, size) = (self.inner.store.clone(), plan.layer, plan.size);
            let opened = blocking(move || Ok(store.partial(&layer, size))).await?;
            // Another fetch or an import may have brought it meanwhile.
            let Ok(partial) = opened else { continue };
            let answer = self.asker().ask(Question::Tree, &partial).await;
            // What came of the tree counts, also of one that broke off.
            self.copy(plan, candidates, &partial).await?;
            want.missing = partial.missing();
            // Whoever fetches the rest opens it again; complete ones wait there to be sealed.
            if partial.complete() || open.len() < self.limits.open_max {
                open.insert(layer, partial);
            }
            if answer == Answer::Nobody {
                debug!(layer = %layer, "no peer gives its tree; fetching all that is missing");
                break;
            }
        }
        Ok(self.reused_bytes)
    }

    /// Sees to it that the new contract is here. False if nobody gives it now.
    async fn bring_contract(&self, wants: &mut Vec<LayerWant>, open: &mut OpenLayers) -> Result<bool> {
        let contract = self.manifest.contract();
        let Some(at) = wants.iter().position(|want| want.layer == contract.id) else {
            return Ok(true);
        };
        if contract.size > self.limits.contract_bytes_max {
            return Ok(false);
        }
        let (store, id, size) = (self.inner.store.clone(), contract.id, contract.size);
        let partial = match blocking(move || Ok(store.partial(&id, size))).await? {
            Ok(partial) => partial,
            Err(weighlock_cache::StoreError::AlreadySealed(_)) => {
                wants.remove(at);
                return Ok(true);
            }
            Err(e) => return Err(e.into()),
        };
        open.insert(id, partial.clone());
        let answer = self.asker().ask(Question::Bytes, &partial).await;
        wants[at].missing = partial.missing();
        if answer != Answer::Whole {
            return Ok(false);
        }
        let store = self.inner.store.clone();
        blocking(move || store.seal(&partial).map_err(Error::from)).await?;
        wants.remove(at);
        open.remove(&id);
        Ok(true)
    }

    /// Proves and copies the candidates of one layer.
    async fn copy(
        &mut self,
        plan: LayerPlan,
        candidates: GroupSet,
        partial: &Arc<PartialLayer>,
    ) -> Result<()> {
        let (inner, partial) = (self.inner.clone(), partial.clone());
        let (limits, progress, cancel) = (self.limits.clone(), self.progress.clone(), self.cancel.clone());
        let wanted_bytes = bytes_in(&candidates, plan.size);
        let layer = plan.layer;
        let copied = blocking(move || {
            let tell = |bytes: u64| {
                inner.grown.send_modify(|n| *n += 1);
                progress.send_modify(|p| {
                    p.done_bytes += bytes;
                    p.reused_bytes += bytes;
                });
            };
            copy::run(&inner.store, &plan, &candidates, &partial, &limits, &tell, &cancel)
        });
        let copied = copied.await?;
        if copied < wanted_bytes {
            debug!(layer = %layer, copied, wanted_bytes, "not all local bytes are what the contracts say");
        }
        self.reused_bytes += copied;
        Ok(())
    }

    fn show(&self, wants: &[LayerWant]) {
        let sizes: BTreeMap<LayerId, u64> =
            self.manifest.layers().map(|layer| (layer.id, layer.size)).collect();
        let total_bytes = sizes.values().sum();
        let missing: u64 = wants.iter().map(|want| bytes_in(&want.missing, want.size)).sum();
        self.progress.send_replace(Progress {
            phase: "reuse".into(),
            done_bytes: total_bytes - missing.min(total_bytes),
            total_bytes,
            ..Progress::default()
        });
    }

    fn asker(&self) -> Asker<'_> {
        Asker { inner: self.inner, digest: self.manifest.digest(), limits: &self.limits, cancel: self.cancel }
    }
}

/// Contracts of other artifacts that are here and worth a look.
fn held_contracts(store: &Store, manifest: &Manifest, limits: &DeltaLimits) -> Result<Vec<Layer>> {
    let mut contracts = Vec::new();
    let mut seen = BTreeSet::from([manifest.contract().id]);
    for digest in store.held().map_err(Error::from)? {
        let Some(other) = crate::facts::manifest(store, &digest)? else { continue };
        let contract = other.contract();
        if contract.size <= limits.contract_bytes_max
            && seen.insert(contract.id)
            && store.layer(&contract.id).map_err(Error::from)?.is_some()
        {
            contracts.push(contract.clone());
        }
        if contracts.len() >= limits.manifests_max {
            break;
        }
    }
    Ok(contracts)
}

/// What can be taken from where, for the layers in `sizes`. Blocks on the disk.
fn make_plans(
    store: &Store,
    contract: &LayerId,
    held: &[Layer],
    sizes: BTreeMap<LayerId, u64>,
    limits: &DeltaLimits,
) -> Result<Vec<LayerPlan>> {
    let Some(wanted) = read_index(store, contract, limits) else {
        return Ok(Vec::new());
    };
    let mut matcher = Matcher::new(wanted, &sizes);
    for contract in held {
        if matcher.satisfied() {
            break;
        }
        let Some(index) = read_index(store, &contract.id, limits) else { continue };
        // Only what is sealed here, and as long as it is here.
        matcher.offer(&index, |layer| store.layer(layer).ok().flatten().map(|info| info.size));
    }
    Ok(matcher.plans())
}

/// The tensor index of a contract that is here; `None` with a word in the log where it cannot be used.
fn read_index(store: &Store, contract: &LayerId, limits: &DeltaLimits) -> Option<TensorIndex> {
    let read = || -> Result<TensorIndex> {
        let layer = store.open_sealed(contract).map_err(Error::from)?;
        if layer.size > limits.contract_bytes_max {
            return Err(Error::refused(format!("it has {} bytes", layer.size)));
        }
        serde_json::from_reader(std::io::BufReader::new(layer.file)).map_err(Error::integrity)
    };
    read().inspect_err(|e| debug!(contract = %contract, error = %e, "contract not usable")).ok()
}
