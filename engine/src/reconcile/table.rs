//! The entries that the kernel holds, as far as this engine mapped them.

use super::range_map::{RangeMap, Ranged};
use crate::addr::{HostVa, IovaRange};
use crate::region::{Backing, Kind, Mapping, Perm, Region};

/// Identifies the `map_region` call of an exact entry; [`Generation::SHARED`] for all entries that may be joined and
/// cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Generation(pub u64);

impl Generation {
    /// For everything that is not exact.
    pub const SHARED: Self = Self(0);
    /// For entries that should have been unmapped and could not be. No region has it, so that the next plan that touches
    /// such an entry unmaps it: the memory at its address can be other memory by then.
    pub const LEFTOVER: Self = Self(u64::MAX);
}

/// One entry of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The IOVAs.
    pub range: IovaRange,
    /// Host address of its first byte.
    pub hva: HostVa,
    /// The device's access.
    pub perm: Perm,
    /// RAM or device memory.
    pub kind: Kind,
    /// The memory object that the entry is a part of.
    pub backing: Backing,
    /// The generation of its region if the entry is exact.
    pub generation: Generation,
}

// The table of a 64 TiB guest has 65,535 entries: they must stay small.
const _: () = assert!(size_of::<(u64, Entry)>() <= 128);

impl Ranged for Entry {
    fn range(&self) -> IovaRange {
        self.range
    }
}

impl Entry {
    /// The entry for a whole region, or for what an unmap left of it.
    pub fn of(region: &Region, generation: Generation) -> Self {
        let Region { range, hva, perm, kind, backing, join: _, exact: _ } = *region;
        Self { range, hva, perm, kind, backing, generation }
    }

    /// The arguments of the backend's map call.
    pub fn mapping(&self) -> Mapping {
        Mapping { range: self.range, hva: self.hva, perm: self.perm }
    }

    /// The host address at `iova`, which lies in this entry.
    pub fn hva_at(&self, iova: u64) -> HostVa {
        debug_assert!(self.range.start() <= iova && iova <= self.range.last());
        HostVa::from_raw(self.hva.raw().wrapping_add(iova - self.range.start()))
    }

    /// Whether both entries map `shared`, which lies in both, identically.
    pub fn agrees_with(&self, other: &Self, shared: IovaRange) -> bool {
        (self.perm, self.kind, self.backing, self.generation)
            == (other.perm, other.kind, other.backing, other.generation)
            && self.hva_at(shared.start()) == other.hva_at(shared.start())
    }

    /// Whether the entry should have been unmapped, and could not be.
    pub fn is_leftover(&self) -> bool {
        self.generation == Generation::LEFTOVER
    }

    /// Whether the IOVA and the host address agree modulo `page`, a power of two: a superpage of that size can map
    /// the entry only if they do.
    fn congruent(&self, page: u64) -> bool {
        (self.range.start() ^ self.hva.raw()) & (page - 1) == 0
    }
}

/// Sums over the table, updated with each entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Bytes mapped.
    pub bytes: u64,
    /// Bytes with an IOVA and a host address that agree modulo 2 MiB.
    pub congruent_2m: u64,
    /// Bytes with an IOVA and a host address that agree modulo 1 GiB.
    pub congruent_1g: u64,
    /// The number of entries that should have been unmapped, and could not be.
    pub leftovers: u64,
}

/// The table: disjoint entries, sorted by IOVA.
#[derive(Clone, Debug, Default)]
pub struct MapTable {
    entries: RangeMap<Entry>,
    totals: Totals,
}

impl MapTable {
    /// The number of entries.
    pub fn len(&self) -> u64 {
        self.entries.len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The sums over all entries.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// All entries, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The entries that share a byte with `range`, ascending.
    pub fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = &Entry> {
        self.entries.overlapping(range)
    }

    /// The entry that is exactly `range`.
    pub fn on(&self, range: IovaRange) -> Option<&Entry> {
        self.entries.on(range)
    }

    /// Whether no entry shares a byte with `range`.
    pub fn is_free(&self, range: IovaRange) -> bool {
        self.entries.last_overlapping(range).is_none()
    }

    /// Records an entry that the kernel mapped.
    pub fn insert(&mut self, entry: Entry) {
        self.count(&entry, u64::wrapping_add);
        self.entries.insert(entry);
    }

    /// Removes every entry wholly inside `range`, after the kernel has unmapped them.
    pub fn remove_within(&mut self, range: IovaRange) {
        // Most calls unmap one entry.
        if self.on(range).is_some() {
            return self.remove(range.start());
        }
        let gone = self.overlapping(range).filter(|entry| range.contains(entry.range));
        let gone: Vec<u64> = gone.map(|entry| entry.range.start()).collect();
        gone.into_iter().for_each(|start| self.remove(start));
    }

    /// Records that the entries in `range` should have been unmapped, and could not be.
    pub fn mark_leftovers(&mut self, range: IovaRange) {
        let left: Vec<Entry> =
            self.overlapping(range).filter(|entry| !entry.is_leftover()).copied().collect();
        for entry in left {
            self.totals.leftovers += 1;
            self.entries.change(entry.range.start(), |entry| entry.generation = Generation::LEFTOVER);
        }
    }

    fn remove(&mut self, start: u64) {
        if let Some(entry) = self.entries.remove(start) {
            self.count(&entry, u64::wrapping_sub);
        }
    }

    fn count(&mut self, entry: &Entry, add: fn(u64, u64) -> u64) {
        let bytes = entry.range.length();
        self.totals.bytes = add(self.totals.bytes, bytes);
        self.totals.leftovers = add(self.totals.leftovers, u64::from(entry.is_leftover()));
        if entry.congruent(1 << 21) {
            self.totals.congruent_2m = add(self.totals.congruent_2m, bytes);
        }
        if entry.congruent(1 << 30) {
            self.totals.congruent_1g = add(self.totals.congruent_1g, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Iova;

    fn entry(start: u64, length: u64, hva: u64) -> Entry {
        Entry {
            range: IovaRange::new(Iova(start), length).unwrap(),
            hva: HostVa::from_raw(hva),
            perm: Perm::ReadWrite,
            kind: Kind::Ram,
            backing: Backing(1),
            generation: Generation::SHARED,
        }
    }

    #[test]
    fn finds_what_overlaps_from_either_side() {
        let mut table = MapTable::default();
        for start in [0x1000, 0x3000, 0x5000] {
            table.insert(entry(start, 0x1000, start));
        }
        let starts = |a, b| -> Vec<u64> {
            table.overlapping(IovaRange::from_bounds(a, b).unwrap()).map(|e| e.range.start()).collect()
        };
        assert_eq!(starts(0, 0xfff), []);
        assert_eq!(starts(0x1fff, 0x3000), [0x1000, 0x3000]);
        assert_eq!(starts(0x2000, 0x2fff), []);
        assert_eq!(starts(0, u64::MAX), [0x1000, 0x3000, 0x5000]);
    }

    #[test]
    fn totals_follow_the_entries() {
        let mut table = MapTable::default();
        table.insert(entry(1 << 30, 1 << 30, 7 << 30));
        table.insert(entry(2 << 30, 1 << 21, (9 << 30) + (1 << 21)));
        table.insert(entry(0, 0x1000, 0x5000));
        // Both addresses have the same offset in their superpages.
        table.insert(entry((4 << 30) + 0x5000, 0x2000, (9 << 30) + 0x5000));
        assert_eq!(
            table.totals(),
            Totals {
                bytes: (1 << 30) + (1 << 21) + 0x3000,
                congruent_2m: (1 << 30) + (1 << 21) + 0x2000,
                congruent_1g: (1 << 30) + 0x2000,
                leftovers: 0
            }
        );
        table.mark_leftovers(entry(0, 0x1000, 0).range);
        table.mark_leftovers(entry(0, 0x1000, 0).range);
        assert_eq!(table.totals().leftovers, 1);
        table.remove_within(IovaRange::ALL);
        assert_eq!(table.totals(), Totals::default());
        assert!(table.is_empty());
    }

    #[test]
    fn removing_spares_what_is_only_cut() {
        let mut table = MapTable::default();
        table.insert(entry(0x1000, 0x2000, 0));
        table.remove_within(IovaRange::from_bounds(0, 0x1fff).unwrap());
        assert_eq!(table.len(), 1);
    }
}
