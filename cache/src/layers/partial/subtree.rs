//! The shape of the tree over groups: which node is where in pre-order, and what is above a group.

use crate::layers::have::Bitmap;
use crate::layers::outboard::left_groups;

/// A node of the tree over groups: where its groups start, how many they are, its number in pre-order.
#[derive(Clone, Copy)]
pub(crate) struct Subtree {
    pub(crate) first: u64,
    pub(crate) groups: u64,
    pub(crate) node: u64,
}

impl Subtree {
    pub(crate) fn whole(groups: u64) -> Self {
        Self { first: 0, groups, node: 0 }
    }

    pub(crate) fn children(self) -> (Self, Self) {
        let left = left_groups(self.groups);
        (
            Self { first: self.first, groups: left, node: self.node + 1 },
            Self { first: self.first + left, groups: self.groups - left, node: self.node + left },
        )
    }
}

/// The nodes above a group, from the root down, by their number in pre-order.
pub(super) fn ancestors(group: u64, groups: u64) -> impl Iterator<Item = u64> {
    let mut at = Subtree::whole(groups);
    std::iter::from_fn(move || {
        if at.groups <= 1 {
            return None;
        }
        let node = at.node;
        let (left, right) = at.children();
        at = if group < right.first { left } else { right };
        Some(node)
    })
}

/// The node right above a group and whether the group is its right child; `None` for the only group of a layer.
pub(super) fn parent_of(group: u64, groups: u64) -> Option<(u64, bool)> {
    let mut at = Subtree::whole(groups);
    let mut parent = None;
    while at.groups > 1 {
        let node = at.node;
        let (left, right) = at.children();
        let is_right = group >= right.first;
        at = if is_right { right } else { left };
        parent = Some((node, is_right));
    }
    parent
}

/// Marks all nodes above groups that are held.
pub(super) fn mark_ancestors(have: &Bitmap, nodes: &mut Bitmap, first: u64, groups: u64, node: u64) {
    if groups <= 1 || !have.any(first, first + groups) {
        return;
    }
    nodes.set(node);
    let (left, right) = (Subtree { first, groups, node }).children();
    mark_ancestors(have, nodes, left.first, left.groups, left.node);
    mark_ancestors(have, nodes, right.first, right.groups, right.node);
}
