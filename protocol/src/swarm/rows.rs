//! A few things under growing numbers, in one place: what a tree would scatter over memory.

use smallvec::SmallVec;

/// Values by key, in the order of the keys. Keys are added in growing order.
#[derive(Debug)]
pub(super) struct Rows<K, V> {
    rows: Vec<(K, V)>,
}

impl<K, V> Default for Rows<K, V> {
    fn default() -> Self {
        Self { rows: Vec::new() }
    }
}

impl<K: Copy + Ord, V> Rows<K, V> {
    /// Adds a value. Its key is greater than all others.
    pub(super) fn push(&mut self, key: K, value: V) {
        debug_assert!(self.rows.last().is_none_or(|(last, _)| *last < key), "keys grow");
        self.rows.push((key, value));
    }

    pub(super) fn get(&self, key: K) -> Option<&V> {
        self.find(key).map(|at| &self.rows[at].1)
    }

    pub(super) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        self.find(key).map(|at| &mut self.rows[at].1)
    }

    pub(super) fn remove(&mut self, key: K) -> Option<V> {
        self.find(key).map(|at| self.rows.remove(at).1)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.rows.iter()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.rows.iter().map(|(_, value)| value)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (K, &mut V)> {
        self.rows.iter_mut().map(|(key, value)| (*key, value))
    }

    fn find(&self, key: K) -> Option<usize> {
        self.rows.binary_search_by_key(&key, |(key, _)| *key).ok()
    }
}

/// Values by key, in the order of the keys. The first stands in the list itself: mostly there is no other, and whoever
/// looks for it need not follow where it leads.
#[derive(Debug)]
pub(super) struct Few<K, V> {
    rows: SmallVec<[(K, V); 1]>,
}

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self { rows: SmallVec::new() }
    }
}

impl<K: Copy + Ord, V> Few<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.place(key).ok().map(|at| &self.rows[at].1)
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.place(key).ok().map(|at| &mut self.rows[at].1)
    }

    pub(super) fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Adds a value, in place of the one that the key had.
    pub(super) fn insert(&mut self, key: K, value: V) {
        match self.place(&key) {
            Ok(at) => self.rows[at].1 = value,
            Err(at) => self.rows.insert(at, (key, value)),
        }
    }

    pub(super) fn remove(&mut self, key: &K) {
        if let Ok(at) = self.place(key) {
            self.rows.remove(at);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn first(&self) -> Option<&(K, V)> {
        self.rows.first()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.rows.iter().map(|(key, _)| key)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.rows.iter().map(|(_, value)| value)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.rows.iter_mut().map(|(key, value)| (&*key, value))
    }

    fn place(&self, key: &K) -> Result<usize, usize> {
        self.rows.binary_search_by_key(key, |(other, _)| *other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_changed_and_taken_out_in_order() {
        let mut rows = Rows::default();
        for key in [1, 3, 7, 9] {
            rows.push(key, key * 10);
        }
        assert_eq!((rows.get(3), rows.get(4), rows.len()), (Some(&30), None, 4));
        if let Some(value) = rows.get_mut(7) {
            *value += 1;
        }
        assert_eq!((rows.remove(3), rows.remove(3)), (Some(30), None));
        assert_eq!(rows.values().copied().collect::<Vec<_>>(), [10, 71, 90]);
        rows.iter_mut().for_each(|(key, value)| *value = key);
        assert_eq!(rows.iter().copied().collect::<Vec<_>>(), [(1, 1), (7, 7), (9, 9)]);
    }

    #[test]
    fn a_few_values_are_kept_in_order() {
        let mut few = Few::default();
        for key in [7, 3, 9, 7] {
            few.insert(key, key * 10);
        }
        assert_eq!((few.get(&3), few.get(&4), few.len()), (Some(&30), None, 3));
        few.iter_mut().for_each(|(key, value)| *value += *key);
        few.remove(&9);
        assert_eq!((few.first(), few.contains_key(&9)), (Some(&(3, 33)), false));
        assert_eq!(few.keys().copied().collect::<Vec<_>>(), [3, 7]);
        assert_eq!(few.values().copied().collect::<Vec<_>>(), [33, 77]);
    }
}
