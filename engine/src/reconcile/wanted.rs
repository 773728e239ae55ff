//! The regions that the caller wants mapped, with a journal to roll a transaction back.

use std::collections::{BTreeMap, BTreeSet};

use super::range_map::{RangeMap, Ranged};
use crate::addr::IovaRange;
use crate::reconcile::table::{Entry, Generation};
use crate::region::{Backing, Kind, Region};

/// A region that the caller declared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// The region, or what later unmaps left of it.
    pub region: Region,
    /// Identifies the `map_region` call of an exact region.
    pub generation: Generation,
    /// The kind that the caller declared. It stays, whatever the memory turns out to be.
    pub declared: Kind,
}

impl Ranged for Wanted {
    fn range(&self) -> IovaRange {
        self.region.range
    }
}

impl Wanted {
    /// Whether the entry maps `shared` as this region does.
    fn agrees_with(&self, entry: &Entry, shared: IovaRange) -> bool {
        Entry::of(&self.region, self.generation).agrees_with(entry, shared)
    }

    /// Whether one entry may cover the end of this region and the beginning of its neighbour `next`.
    pub fn joins(&self, next: &Self) -> bool {
        let (a, b) = (&self.region, &next.region);
        a.join
            && b.join
            && !a.exact
            && !b.exact
            && a.kind == Kind::Ram
            && b.kind == Kind::Ram
            && a.backing == b.backing
            && a.backing != Backing::UNKNOWN
            && a.perm == b.perm
            && a.range.last().checked_add(1) == Some(b.range.start())
            && a.hva.checked_add(a.range.length()) == Some(b.hva)
    }
}

/// A change of the wanted set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// A region was added.
    Inserted(Wanted),
    /// A region, or what was left of it, was removed.
    Removed(Wanted),
}

/// A point in a transaction, to roll back to. The default is its beginning.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark {
    changes: usize,
    touched: usize,
    unmapped: usize,
}

/// What a transaction has changed so far.
#[derive(Debug, Default)]
pub struct Journal {
    changes: Vec<Change>,
    touched: Vec<IovaRange>,
    unmapped: Vec<IovaRange>,
}

/// The wanted set, and its open transaction if there is one.
#[derive(Debug, Default)]
pub struct WantedSet {
    regions: RangeMap<Wanted>,
    bytes: u64,
    /// The number of regions of each known backing.
    uses: BTreeMap<Backing, u64>,
    /// Backings in which memory declared as RAM turned out to be device memory.
    devices: BTreeSet<Backing>,
    generations: u64,
    journal: Journal,
}

impl WantedSet {
    /// The number of wanted regions.
    pub fn len(&self) -> u64 {
        self.regions.len()
    }

    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// The number of wanted bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a wanted region has this backing, which is not [`Backing::UNKNOWN`].
    pub fn names(&self, backing: Backing) -> bool {
        self.uses.contains_key(&backing)
    }

    /// All wanted regions, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Wanted> {
        self.regions.iter()
    }

    /// The wanted regions that share a byte with `range`, ascending.
    pub fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = &Wanted> {
        self.regions.overlapping(range)
    }

    /// Whether every byte of `entry` is still wanted as it is mapped, if only `touched` can have changed since it was
    /// mapped. Takes time in proportion to the regions in `touched`, not to those in `entry`.
    pub fn covers(&self, entry: &Entry, touched: IovaRange) -> bool {
        // The regions at both ends of `touched` must still join those next to them.
        let start = entry.range.start().max(touched.start().saturating_sub(1));
        let last = entry.range.last().min(touched.last().saturating_add(1));
        let Some(part) = IovaRange::from_bounds(start, last) else { return true };
        let mut previous: Option<&Wanted> = None;
        for wanted in self.overlapping(part) {
            let region = &wanted.region;
            let Some(shared) = region.range.intersection(part) else { return false };
            if !wanted.agrees_with(entry, shared) || (region.exact && region.range != entry.range) {
                return false;
            }
            let contiguous = match previous {
                None => region.range.start() <= part.start(),
                Some(previous) => previous.joins(wanted),
            };
            if !contiguous {
                return false;
            }
            previous = Some(wanted);
        }
        previous.is_some_and(|last| last.region.range.last() >= part.last())
    }

    /// Adds a region; if it overlaps a wanted one, returns that region's range as the error. A region of a backing that
    /// is known to be device memory becomes device memory.
    pub fn insert(&mut self, region: Region) -> Result<(), IovaRange> {
        // The last one is found at once; the first one is only needed for the error.
        if self.regions.last_overlapping(region.range).is_some() {
            if let Some(first) = self.overlapping(region.range).next() {
                return Err(first.region.range);
            }
        }
        let declared = region.kind;
        let region = self.classified(region);
        let generation = if region.exact {
            self.generations += 1;
            Generation(self.generations)
        } else {
            Generation::SHARED
        };
        self.put(Wanted { region, generation, declared });
        self.journal.touched.push(region.range);
        Ok(())
    }

    /// The region as it would be inserted.
    pub fn classified(&self, region: Region) -> Region {
        let kind = if self.is_known_device(&region) { Kind::Device } else { region.kind };
        Region { kind, ..region }
    }

    /// The region that is exactly `range`.
    pub fn on(&self, range: IovaRange) -> Option<&Wanted> {
        self.regions.on(range)
    }

    /// Removes `range`; returns the number of bytes that were wanted there, or as the error the exact region that the
    /// range would cut.
    pub fn remove(&mut self, range: IovaRange) -> Result<u64, IovaRange> {
        if let Some(&wanted) = self.regions.on(range) {
            self.take(&wanted);
            self.journal.touched.push(range);
            self.journal.unmapped.push(range);
            return Ok(range.length());
        }
        if let Some(cut) = self.cut_exact(range) {
            return Err(cut);
        }
        let found: Vec<Wanted> = self.overlapping(range).copied().collect();
        let mut bytes = 0u64;
        for wanted in &found {
            let whole = wanted.region.range;
            self.take(wanted);
            let (before, after) = whole.without(range);
            for rest in [before, after].into_iter().flatten() {
                if let Some(region) = wanted.region.clip(rest) {
                    self.put(Wanted { region, ..*wanted });
                }
            }
            bytes = bytes.saturating_add(whole.intersection(range).map_or(0, IovaRange::length));
        }
        // One range for all: what is between them was not wanted before either.
        let hull = found.first().zip(found.last()).and_then(|(first, last)| {
            IovaRange::from_bounds(first.region.range.start(), last.region.range.last())
        });
        self.journal.touched.extend(hull.and_then(|hull| hull.intersection(range)));
        self.journal.unmapped.push(range);
        Ok(bytes)
    }

    /// The first exact region that `range` cuts: it can only contain the first or the last byte of `range`.
    fn cut_exact(&self, range: IovaRange) -> Option<IovaRange> {
        let ends = [range.start(), range.last()].into_iter().filter_map(|end| {
            let end = IovaRange::from_bounds(end, end)?;
            self.regions.last_overlapping(end)
        });
        let mut exact = ends.filter(|end| end.region.exact).map(|end| end.region.range);
        exact.find(|region| !range.contains(*region))
    }

    /// Whether a region to be added is part of an object that is known to be device memory. If the transaction has
    /// removed all other regions of the backing, the number may stand for another object already, at other addresses.
    fn is_known_device(&self, region: &Region) -> bool {
        let Region { backing, hva, .. } = *region;
        let removed = |change: &Change| match change {
            Change::Removed(Wanted { region: old, .. }) => {
                old.backing == backing && old.hva <= hva && hva <= old.hva_at(old.range.last())
            }
            Change::Inserted(_) => false,
        };
        self.devices.contains(&backing) && (self.names(backing) || self.journal.changes.iter().any(removed))
    }

    /// Marks the regions that share a byte with `range` as device memory, and their backings for the regions to come.
    /// A memory object is device memory as a whole or not at all.
    pub fn reclassify_as_device(&mut self, range: IovaRange) {
        let starts: Vec<u64> = self.overlapping(range).map(|wanted| wanted.region.range.start()).collect();
        for start in starts {
            let mut backing = Backing::UNKNOWN;
            self.regions.change(start, |wanted| {
                wanted.region.kind = Kind::Device;
                backing = wanted.region.backing;
            });
            if backing != Backing::UNKNOWN {
                self.devices.insert(backing);
            }
        }
    }

    /// The entry that is exactly `range` and maps it as it is wanted; `None` if no single entry can.
    pub fn entry_on(&self, range: IovaRange) -> Option<Entry> {
        let first = self.overlapping(range).next()?;
        let clipped = first.region.clip(range)?;
        let entry = Entry { range, ..Entry::of(&clipped, first.generation) };
        self.covers(&entry, range).then_some(entry)
    }

    /// The ranges that the open transaction touched, in order.
    pub fn touched(&self) -> &[IovaRange] {
        &self.journal.touched
    }

    /// The changes of the open transaction, in order.
    pub fn changes(&self) -> &[Change] {
        &self.journal.changes
    }

    /// The only change of the open transaction; `None` if there is none, or more than one.
    pub fn only_change(&self) -> Option<Change> {
        match self.journal.changes[..] {
            [change] => Some(change),
            _ => None,
        }
    }

    /// The ranges that the open transaction unmapped, in order, including what was not wanted there.
    pub fn unmapped(&self) -> &[IovaRange] {
        &self.journal.unmapped
    }

    /// Puts the transaction aside, so that regions elsewhere can be changed and committed meanwhile.
    pub fn suspend(&mut self) -> Journal {
        std::mem::take(&mut self.journal)
    }

    /// Continues a transaction that was put aside. No other transaction may be open.
    pub fn resume(&mut self, journal: Journal) {
        debug_assert!(self.journal.touched.is_empty(), "a single change is committed or rolled back at once");
        self.journal = journal;
    }

    /// Commits the transaction: it can no longer be rolled back.
    pub fn commit(&mut self) {
        let Journal { changes, touched, unmapped } = &mut self.journal;
        changes.clear();
        touched.clear();
        unmapped.clear();
        // The number of a backing that is no longer used may come to stand for another object.
        let Self { devices, uses, .. } = self;
        devices.retain(|backing| uses.contains_key(backing));
    }

    /// The current point in the transaction.
    pub fn mark(&self) -> Mark {
        let Journal { changes, touched, unmapped } = &self.journal;
        Mark { changes: changes.len(), touched: touched.len(), unmapped: unmapped.len() }
    }

    /// Rolls back everything the transaction did.
    pub fn roll_back(&mut self) {
        self.roll_back_to(Mark::default());
    }

    /// Rolls back everything since `mark`.
    pub fn roll_back_to(&mut self, mark: Mark) {
        while self.journal.changes.len() > mark.changes {
            let Some(change) = self.journal.changes.pop() else { break };
            match change {
                Change::Inserted(wanted) => {
                    self.count_out(&wanted.region);
                    self.regions.remove(wanted.region.range.start());
                }
                Change::Removed(mut wanted) => {
                    // It may have been found out since.
                    if self.devices.contains(&wanted.region.backing) {
                        wanted.region.kind = Kind::Device;
                    }
                    self.count_in(&wanted.region);
                    self.regions.insert(wanted);
                }
            }
        }
        self.journal.touched.truncate(mark.touched);
        self.journal.unmapped.truncate(mark.unmapped);
    }

    /// Rolls back what the transaction added, but keeps what it unmapped: the state after a failed commit.
    pub fn roll_back_additions(&mut self) {
        let unmapped = std::mem::take(&mut self.journal.unmapped);
        self.roll_back();
        for range in unmapped {
            // Each of these removals succeeded on a superset of the current regions, so none can cut an exact region.
            let removed = self.remove(range);
            debug_assert!(removed.is_ok());
        }
        self.commit();
    }

    fn put(&mut self, wanted: Wanted) {
        self.count_in(&wanted.region);
        self.regions.insert(wanted);
        self.journal.changes.push(Change::Inserted(wanted));
    }

    fn take(&mut self, wanted: &Wanted) {
        self.count_out(&wanted.region);
        self.regions.remove(wanted.region.range.start());
        self.journal.changes.push(Change::Removed(*wanted));
    }

    fn count_in(&mut self, region: &Region) {
        self.bytes = self.bytes.wrapping_add(region.range.length());
        if region.backing == Backing::UNKNOWN {
            return;
        }
        *self.uses.entry(region.backing).or_default() += 1;
    }

    fn count_out(&mut self, region: &Region) {
        self.bytes = self.bytes.wrapping_sub(region.range.length());
        if let Some(uses) = self.uses.get_mut(&region.backing) {
            *uses -= 1;
            if *uses == 0 {
                self.uses.remove(&region.backing);
            }
        }
    }
}
