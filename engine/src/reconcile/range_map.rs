//! Values on disjoint ranges.

use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;

use crate::addr::IovaRange;

/// A value that covers a range.
pub(super) trait Ranged {
    fn range(&self) -> IovaRange;
}

/// Disjoint ranges, ascending.
#[derive(Clone, Debug)]
pub(super) struct RangeMap<V>(BTreeMap<u64, V>);

impl<V> Default for RangeMap<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V: Ranged> RangeMap<V> {
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All values, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &V> {
        self.0.values()
    }

    /// The values that share a byte with `range`, ascending.
    pub fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = &V> {
        let before = self.0.range(..=range.start()).next_back().map(|(_, value)| value);
        let first = before.filter(|value| value.range().overlaps(range));
        // Often there is nothing behind the first one, which then is the only search.
        let is_all = first.is_some_and(|value| value.range().last() >= range.last());
        let behind = (Bound::Excluded(range.start()), Bound::Included(range.last()));
        let rest = (!is_all && range.start() < range.last()).then(|| self.0.range(behind));
        Overlapping { first, rest }
    }

    /// The value on exactly `range`.
    pub fn on(&self, range: IovaRange) -> Option<&V> {
        self.0.get(&range.start()).filter(|value| value.range() == range)
    }

    /// The last value that shares a byte with `range`. Takes one search, where `overlapping` takes two.
    pub fn last_overlapping(&self, range: IovaRange) -> Option<&V> {
        // Of the values that begin before the end of `range`, the last one also ends last.
        let (_, last) = self.0.range(..=range.last()).next_back()?;
        Some(last).filter(|value| value.range().overlaps(range))
    }

    /// Adds a value, which must not overlap another.
    pub fn insert(&mut self, value: V) {
        debug_assert!(self.last_overlapping(value.range()).is_none(), "ranges are disjoint");
        self.0.insert(value.range().start(), value);
    }

    /// Removes the value that starts at `start`.
    pub fn remove(&mut self, start: u64) -> Option<V> {
        self.0.remove(&start)
    }

    /// Changes the value that starts at `start`, but not its range.
    pub fn change(&mut self, start: u64, change: impl FnOnce(&mut V)) {
        if let Some(value) = self.0.get_mut(&start) {
            change(value);
        }
    }
}

/// The values of a [`RangeMap`] that share a byte with a range.
struct Overlapping<'a, V> {
    /// The one that begins at or before the range.
    first: Option<&'a V>,
    rest: Option<btree_map::Range<'a, u64, V>>,
}

impl<'a, V> Iterator for Overlapping<'a, V> {
    type Item = &'a V;

    fn next(&mut self) -> Option<&'a V> {
        self.first.take().or_else(|| self.rest.as_mut()?.next().map(|(_, value)| value))
    }
}
