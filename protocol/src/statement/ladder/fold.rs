//! From the statements of one artifact to the line of heads of each of its channels.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::authority::{Authority, Set};
use super::super::body::Kind;
use super::super::promotion::{HARDWARE_ANY, OnChannel, Promotion, Rollback};
use super::super::why::{Status, Why};
use super::view::View;
use super::{Hold, Line};
use crate::gate::Policy;
use crate::id::{KeyId, ManifestDigest, Sha256, StatementId};
use crate::names::{Artifact, Stage};
use crate::time::UnixTime;

/// The outcome for one artifact.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Folded {
    channels: BTreeMap<Stage, BTreeMap<String, Path>>,
    statuses: BTreeMap<StatementId, Status>,
    /// Promotions that would replace a present head if they stood.
    pending: BTreeSet<StatementId>,
}

/// The heads that one channel has had, the present one last.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Path {
    pub(super) nodes: Vec<Node>,
    /// Promotions of the present head's successor that cancel each other.
    pub(super) conflict: BTreeSet<StatementId>,
    /// All promotions that stand or stood, by id; wider than `nodes`.
    stood: BTreeMap<StatementId, (ManifestDigest, UnixTime)>,
}

/// One head.
#[derive(Debug, Clone)]
pub(in super::super) struct Node {
    /// The promotion or rollback.
    pub(super) id: StatementId,
    /// What it made the head; a rollback may leave none.
    pub(super) manifest: Option<ManifestDigest>,
    pub(super) epoch: u64,
    pub(super) root: u32,
    /// Since when: the last cosignature that it took, or the rollback's own time.
    pub(super) since: UnixTime,
    pub(super) by: KeyId,
    /// The policy of the promotion that brought the manifest here.
    pub(super) policy: Option<Sha256>,
    /// What a rollback called bad.
    pub(super) bad: Option<ManifestDigest>,
    /// All that was called bad up to here, and when last.
    pub(super) all_bad: Arc<BTreeMap<ManifestDigest, UnixTime>>,
}

/// What stands, in an order in which parents come first.
struct Tree {
    nodes: Vec<(Node, Option<usize>)>,
}

impl Folded {
    pub(super) fn of(artifact: &Artifact, line: &Line, set: &Set, authority: &Authority) -> Self {
        let view = View { artifact, line, set, authority };
        let mut folded = Self::default();
        let mut of_channel: BTreeMap<(Stage, &str), Vec<StatementId>> = BTreeMap::new();
        for id in line.promotions.iter().chain(&line.rollbacks) {
            if let Some(channel) = view.held(id).and_then(|h| h.statement.kind.channel()) {
                of_channel.entry((channel.stage, &channel.hardware)).or_default().push(*id);
            }
        }
        // Lower stages come first: a promotion asks about the stage before.
        for ((stage, hardware), ids) in of_channel {
            let path = folded.fold_channel(&view, &ids);
            folded.channels.entry(stage).or_default().insert(hardware.to_owned(), path);
        }
        folded
    }

    fn fold_channel(&mut self, view: &View<'_>, ids: &[StatementId]) -> Path {
        let mut after: BTreeMap<Option<StatementId>, Vec<StatementId>> = BTreeMap::new();
        for id in ids {
            let parent = match view.held(id).map(|h| &h.statement.kind) {
                Some(Kind::Promote(p)) => p.said.parent,
                Some(Kind::Rollback(r)) => Some(r.said.over),
                _ => continue,
            };
            after.entry(parent).or_default().push(*id);
        }
        let mut tree = Tree { nodes: Vec::new() };
        let mut held_back = Vec::new();
        let mut next: Vec<(Option<usize>, StatementId)> =
            after.remove(&None).into_iter().flatten().map(|id| (None, id)).collect();
        let mut at = 0;
        loop {
            for (parent, id) in next.drain(..) {
                let before = parent.map(|n| &tree.nodes[n].0);
                match self.stand(view, &id, before, &tree, parent) {
                    Ok(node) => tree.nodes.push((node, parent)),
                    Err(hold) => held_back.push((id, hold)),
                }
            }
            let Some((node, _)) = tree.nodes.get(at) else { break };
            next = after.remove(&Some(node.id)).into_iter().flatten().map(|id| (Some(at), id)).collect();
            at += 1;
        }
        let (line, conflict) = tree.strongest();
        self.settle(&tree, &line, &conflict);
        let head = line.last().map(|n| tree.nodes[*n].0.id);
        for (id, hold) in held_back {
            let parent = view.promotion(&id).map(|p| p.said.parent);
            if parent == Some(head) {
                self.pending.insert(id);
            }
            let overtaken = parent.is_some_and(|parent| parent != head)
                || (parent.is_none() && view.rollback(&id).is_some_and(|r| Some(r.said.over) != head));
            let why = if overtaken { Why::Overtaken } else { Why::Held(hold) };
            self.statuses.insert(id, if overtaken { Status::Ignored(why) } else { Status::Pending(why) });
        }
        for id in after.into_values().flatten() {
            self.statuses.insert(id, Status::Pending(Why::Held(Hold::Parent)));
        }
        let stood = tree.nodes.iter().filter(|(node, _)| node.bad.is_none());
        let stood = stood.filter_map(|(node, _)| Some((node.id, (node.manifest?, node.since)))).collect();
        Path { nodes: line.into_iter().map(|n| tree.nodes[n].0.clone()).collect(), conflict, stood }
    }

    /// What became of each that stands.
    fn settle(&mut self, tree: &Tree, line: &[usize], conflict: &BTreeSet<StatementId>) {
        let on_line: BTreeSet<usize> = line.iter().copied().collect();
        for (n, (node, parent)) in tree.nodes.iter().enumerate() {
            let status = if on_line.contains(&n) {
                Status::Effective
            } else if conflict.contains(&node.id) {
                Status::Ignored(Why::HeadConflict)
            } else if node.bad.is_some() {
                // Two of one head go back to the same, or its head was passed.
                let rolled = line.iter().any(|l| {
                    let (other, at) = &tree.nodes[*l];
                    other.bad.is_some() && at == parent
                });
                Status::Ignored(if rolled { Why::Overtaken } else { Why::TooLate })
            } else if line.iter().any(|l| tree.nodes[*l].0.bad.is_some()) {
                Status::Ignored(Why::RolledBack)
            } else {
                Status::Ignored(Why::Overtaken)
            };
            self.statuses.insert(node.id, status);
        }
    }

    /// The head that `id` makes of what `before` left, or the first thing that it lacks.
    fn stand(
        &self,
        view: &View<'_>,
        id: &StatementId,
        before: Option<&Node>,
        tree: &Tree,
        parent: Option<usize>,
    ) -> Result<Node, Hold> {
        let held = view.held(id).ok_or(Hold::Parent)?;
        let (by, time) = (held.statement.by, held.statement.time);
        match &held.statement.kind {
            Kind::Promote(p) => {
                if let Some(hold) = self.lacks(view, by, p, time, before).into_iter().next() {
                    return Err(hold);
                }
                let since = view.cosigned(id, p.said.root)?;
                Ok(Node {
                    id: *id,
                    manifest: Some(p.manifest),
                    epoch: p.said.epoch,
                    root: p.said.root,
                    since,
                    by,
                    policy: p.said.policy,
                    bad: None,
                    all_bad: before.map(|n| n.all_bad.clone()).unwrap_or_default(),
                })
            }
            Kind::Rollback(r) => {
                let before = before.ok_or(Hold::Parent)?;
                let target = tree.target(view, r, before, parent)?;
                let mut all_bad = (*before.all_bad).clone();
                // Later than the last time, whatever this author's clock shows: else what came back and is bad again
                // would count as good.
                let at = all_bad.entry(r.manifest).and_modify(|at| *at = at.plus(1)).or_insert(time);
                *at = time.max(*at);
                Ok(Node {
                    id: *id,
                    manifest: target.and_then(|n| n.manifest),
                    epoch: before.epoch.saturating_add(1),
                    root: before.root.max(r.said.root),
                    since: time,
                    by,
                    policy: target.and_then(|n| n.policy),
                    bad: Some(r.manifest),
                    all_bad: Arc::new(all_bad),
                })
            }
            _ => Err(Hold::Parent),
        }
    }

    /// What a promotion lacks to replace `before`, cosignatures aside.
    pub(super) fn lacks(
        &self,
        view: &View<'_>,
        by: KeyId,
        p: &OnChannel<Promotion>,
        time: UnixTime,
        before: Option<&Node>,
    ) -> Vec<Hold> {
        let mut holds = Vec::new();
        let said = &p.said;
        if said.epoch <= before.map_or(0, |n| n.epoch) {
            holds.push(Hold::Epoch);
        }
        let root = view.authority.root_at(said.root);
        if root.is_none() || before.is_some_and(|n| said.root < n.root) {
            holds.push(Hold::Root);
        }
        let Some(digest) = said.policy else {
            return holds;
        };
        let policy = match view.policy(&digest) {
            Ok(policy) => policy,
            Err(hold) => {
                holds.push(hold);
                return holds;
            }
        };
        holds.extend(view.evidence(p, &digest, policy, before));
        if let Some(stage) = policy.stage_before(p.channel.stage) {
            holds.extend(self.stage_before(p, stage, policy, time));
        }
        let needed = policy.stages.get(&p.channel.stage).and_then(|rule| rule.approvals).unwrap_or(0);
        let have = root.map_or(0, |root| view.approvals(p, by, root));
        if have < needed {
            holds.push(Hold::Approvals { have, needed });
        }
        holds
    }

    fn stage_before(
        &self,
        p: &OnChannel<Promotion>,
        stage: Stage,
        policy: &Policy,
        time: UnixTime,
    ) -> Option<Hold> {
        let paths = self.channels.get(&stage).into_iter().flatten();
        let stood = paths
            .filter(|(hardware, _)| **hardware == p.channel.hardware || *hardware == HARDWARE_ANY)
            .filter_map(|(_, path)| path.stood.get(p.said.from.as_ref()?))
            .find(|(manifest, _)| *manifest == p.manifest);
        let Some((_, since)) = stood else {
            return Some(Hold::StageBefore { stage });
        };
        let rule = policy.stages.get(&stage)?;
        if let Some(needed) = rule.min_requests.filter(|n| *n > 0) {
            return Some(Hold::Requests { stage, needed });
        }
        // Where no time is asked for, a witness whose clock is ahead must not make one.
        let from = since.plus(rule.min_duration.filter(|secs| *secs > 0)?);
        (time < from).then_some(Hold::TooSoon { stage, from })
    }

    pub(super) fn status(&self, id: &StatementId) -> Option<Status> {
        self.statuses.get(id).copied()
    }

    pub(super) fn pending(&self) -> impl Iterator<Item = &StatementId> {
        self.pending.iter()
    }

    pub(super) fn path(&self, stage: Stage, hardware: &str) -> Option<&Path> {
        self.channels.get(&stage)?.get(hardware)
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = (Stage, &str, &Path)> {
        self.channels
            .iter()
            .flat_map(|(stage, of)| of.iter().map(|(hardware, path)| (*stage, hardware.as_str(), path)))
    }
}

impl Path {
    pub(super) fn head(&self) -> Option<&Node> {
        self.nodes.last()
    }

    /// The last promotion of `manifest` that stood in this stage, on whatever line.
    pub(super) fn stood(&self, manifest: &ManifestDigest) -> Option<StatementId> {
        let of = self.stood.iter().filter(|(_, (stood, _))| stood == manifest);
        of.max_by_key(|(id, (_, since))| (*since, **id)).map(|(id, _)| *id)
    }

    /// Whether `manifest` stood in this stage and was rolled back since it last did.
    pub(super) fn is_rolled_back(&self, manifest: &ManifestDigest) -> bool {
        let Some(head) = self.head() else { return false };
        match self.nodes.iter().rev().find(|node| node.manifest == Some(*manifest)) {
            Some(node) => head.is_bad_since(manifest, node),
            None => self.stood(manifest).is_some() && head.all_bad.contains_key(manifest),
        }
    }
}

impl Tree {
    /// From the first head to the last, choosing at each place the line that was built upon furthest; and what cancels
    /// each other at its end.
    fn strongest(&self) -> (Vec<usize>, BTreeSet<StatementId>) {
        // In halves of a promotion: a rollback weighs one and a half.
        let mut strength: Vec<usize> = vec![0; self.nodes.len()];
        let mut after: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
        for (n, (node, parent)) in self.nodes.iter().enumerate().rev() {
            let best = after.get(&Some(n)).into_iter().flatten().map(|c| strength[*c]).max().unwrap_or(0);
            strength[n] = best + if node.bad.is_some() { 3 } else { 2 };
            after.entry(*parent).or_default().push(n);
        }
        let mut line = Vec::new();
        while let Some(next) = after.get(&line.last().copied()) {
            let key = |n: usize| {
                let node = &self.nodes[n].0;
                (strength[n], node.bad.is_some(), node.root, node.epoch)
            };
            let Some(best) = next.iter().map(|n| key(*n)).max() else { break };
            let equal: Vec<usize> = next.iter().copied().filter(|n| key(*n) == best).collect();
            let first = equal.iter().copied().min_by_key(|n| self.nodes[*n].0.id);
            match first {
                // Rollbacks of one head differ in their words only.
                Some(first) if equal.len() == 1 || best.1 => line.push(first),
                _ => return (line, equal.into_iter().map(|n| self.nodes[n].0.id).collect()),
            }
        }
        (line, BTreeSet::new())
    }

    /// The earlier head that a rollback of `before`, which is at `parent`, goes back to.
    fn target(
        &self,
        view: &View<'_>,
        r: &OnChannel<Rollback>,
        before: &Node,
        parent: Option<usize>,
    ) -> Result<Option<&Node>, Hold> {
        if before.manifest != Some(r.manifest) {
            return Err(Hold::NotTheHead);
        }
        if r.said.root < before.root || view.authority.root_at(r.said.root).is_none() {
            return Err(Hold::Root);
        }
        let Some(to) = r.said.to else { return Ok(None) };
        let mut at = parent;
        while let Some((node, up)) = at.and_then(|n| self.nodes.get(n)) {
            if node.id == to {
                let is_bad = |m: &ManifestDigest| *m == r.manifest || before.is_bad_since(m, node);
                return match &node.manifest {
                    Some(manifest) if !is_bad(manifest) => Ok(Some(node)),
                    _ => Err(Hold::Target),
                };
            }
            at = *up;
        }
        Err(Hold::Target)
    }
}

impl Node {
    /// Whether `manifest`, the head that `earlier` made, was called bad between there and here.
    pub(super) fn is_bad_since(&self, manifest: &ManifestDigest, earlier: &Node) -> bool {
        match (self.all_bad.get(manifest), earlier.all_bad.get(manifest)) {
            (Some(now), Some(then)) => now > then,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }
}
