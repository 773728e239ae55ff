//! Ranges that are wanted and left to a job that maps them in the background.

use super::range_map::{RangeMap, Ranged};
use crate::addr::IovaRange;

impl Ranged for IovaRange {
    fn range(&self) -> IovaRange {
        *self
    }
}

/// A set of addresses.
#[derive(Clone, Debug, Default)]
pub struct Backlog(RangeMap<IovaRange>);

impl Backlog {
    /// Whether it has no address.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its ranges, ascending and disjoint.
    pub fn iter(&self) -> impl Iterator<Item = IovaRange> {
        self.0.iter().copied()
    }

    /// The bytes of all its ranges.
    pub fn bytes(&self) -> u64 {
        self.iter().fold(0, |sum, range| sum.saturating_add(range.length()))
    }

    /// Whether it has an address of `range`.
    pub fn overlaps(&self, range: IovaRange) -> bool {
        self.0.last_overlapping(range).is_some()
    }

    /// Whether it has every address of `range`.
    pub fn contains(&self, range: IovaRange) -> bool {
        self.0.last_overlapping(range).is_some_and(|last| last.contains(range))
    }

    /// Adds the addresses of `range`.
    pub fn add(&mut self, range: IovaRange) {
        let mut joined = range;
        // Those that touch it, too, so that what is contiguous is one range.
        let start = range.start().saturating_sub(1);
        let last = range.last().saturating_add(1);
        let Some(around) = IovaRange::from_bounds(start, last) else { return };
        while let Some(&old) = self.0.last_overlapping(around) {
            self.0.remove(old.start());
            let (start, last) = (joined.start().min(old.start()), joined.last().max(old.last()));
            joined = IovaRange::from_bounds(start, last).unwrap_or(joined);
        }
        self.0.insert(joined);
    }

    /// Removes the addresses of `range`.
    pub fn remove(&mut self, range: IovaRange) {
        while let Some(&old) = self.0.last_overlapping(range) {
            self.0.remove(old.start());
            let (before, after) = old.without(range);
            before.into_iter().chain(after).for_each(|rest| self.0.insert(rest));
        }
    }

    /// Removes all addresses.
    pub fn clear(&mut self) {
        self.0 = RangeMap::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, last: u64) -> IovaRange {
        IovaRange::from_bounds(start, last).unwrap()
    }

    #[test]
    fn it_has_what_was_added_and_not_removed() {
        let mut backlog = Backlog::default();
        let mut has = [false; 64];
        let mut seed = 7u64;
        for step in 0..4000u64 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (one, other) = ((seed >> 33) % 64, (seed >> 40) % 64);
            let (start, last) = (one.min(other), one.max(other).min(one.min(other) + 9));
            let add = step % 2 == 0;
            if add {
                backlog.add(range(start, last))
            } else {
                backlog.remove(range(start, last))
            }
            has[start as usize..=last as usize].fill(add);
            for at in 0..64u64 {
                assert_eq!(backlog.overlaps(range(at, at)), has[at as usize]);
            }
            assert_eq!(backlog.bytes(), has.iter().filter(|has| **has).count() as u64);
            assert_eq!(backlog.is_empty(), !has.contains(&true));
            let ranges: Vec<IovaRange> = backlog.iter().collect();
            assert!(ranges.windows(2).all(|pair| pair[0].last() + 1 < pair[1].start()), "{ranges:?}");
            assert_eq!(backlog.contains(range(start, last)), add);
        }
    }

    #[test]
    fn the_ends_of_the_address_space_are_addresses() {
        let mut backlog = Backlog::default();
        backlog.add(range(u64::MAX - 9, u64::MAX));
        backlog.add(range(0, 9));
        assert_eq!(backlog.iter().collect::<Vec<_>>(), [range(0, 9), range(u64::MAX - 9, u64::MAX)]);
        backlog.remove(range(u64::MAX, u64::MAX));
        backlog.remove(range(0, 0));
        assert_eq!(backlog.bytes(), 18);
    }
}
