//! The points at which kernel entries may begin and end.
//!
//! Entries are cut at every multiple of the entry size, which limits how long one ioctl holds the container's lock and
//! keeps superpages whole, and at the addresses that the caller names. A caller names an address at which it often
//! splits and joins regions: the memory next to it is then mapped once and kept.

use crate::addr::IovaRange;

/// A set of cut points.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grid {
    entry_size: u64,
    /// The caller's cuts, ascending.
    cuts: Vec<u64>,
}

impl Grid {
    /// The minimum entry size: below a 2 MiB superpage, a cut would cost page-table levels.
    pub const MIN_ENTRY: u64 = 2 << 20;
    /// The default entry size: 65,535 such entries cover 64 TiB.
    pub const DEFAULT_ENTRY: u64 = 1 << 30;

    /// A grid with cuts at each multiple of `entry_size`; `None` unless that is a power of two of at least
    /// [`Grid::MIN_ENTRY`].
    pub fn new(entry_size: u64) -> Option<Self> {
        let valid = entry_size.is_power_of_two() && entry_size >= Self::MIN_ENTRY;
        valid.then_some(Self { entry_size, cuts: Vec::new() })
    }

    /// The grid with these cuts in addition to the multiples of the entry size. They may be in any order.
    #[must_use]
    pub fn with_cuts(self, mut cuts: Vec<u64>) -> Self {
        cuts.sort_unstable();
        cuts.dedup();
        Self { cuts, ..self }
    }

    /// The entry size in bytes.
    pub const fn entry_size(&self) -> u64 {
        self.entry_size
    }

    /// The grid with entries twice as large and the same cuts of the caller; `None` if the entries would not fit in
    /// the address space.
    pub fn coarser(&self) -> Option<Self> {
        self.entry_size.checked_mul(2).map(|entry_size| Self { entry_size, cuts: self.cuts.clone() })
    }

    /// The last byte of the grid cell that contains `address`.
    fn cell_last(&self, address: u64) -> u64 {
        let last = address | (self.entry_size - 1);
        let after = self.cuts.partition_point(|cut| *cut <= address);
        // A cut after an address is at least 1.
        self.cuts.get(after).map_or(last, |cut| last.min(cut - 1))
    }

    /// The number of [`pieces`](Self::pieces) of `range`.
    pub fn count(&self, range: IovaRange) -> u64 {
        let cell = |address| address / self.entry_size;
        let first = self.cuts.partition_point(|cut| *cut <= range.start());
        let inside = self.cuts[first..].iter().take_while(|cut| **cut <= range.last());
        let cuts = inside.filter(|cut| *cut % self.entry_size != 0).count() as u64;
        cell(range.last()) - cell(range.start()) + 1 + cuts
    }

    /// Cuts `range` into pieces that do not cross a cut point.
    pub fn pieces(&self, range: IovaRange) -> impl Iterator<Item = IovaRange> {
        let mut rest = Some(range);
        std::iter::from_fn(move || {
            let range = rest?;
            let last = self.cell_last(range.start()).min(range.last());
            rest = last.checked_add(1).and_then(|start| IovaRange::from_bounds(start, range.last()));
            IovaRange::from_bounds(range.start(), last)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Iova;

    const MIB: u64 = 1 << 20;

    fn cut(grid: &Grid, start: u64, length: u64) -> Vec<(u64, u64)> {
        let range = IovaRange::new(Iova(start), length).unwrap();
        let pieces: Vec<_> = grid.pieces(range).map(|p| (p.start(), p.length())).collect();
        assert_eq!(grid.count(range), pieces.len() as u64);
        pieces
    }

    #[test]
    fn cuts_at_multiples_of_the_entry_size() {
        let grid = Grid::new(Grid::DEFAULT_ENTRY).unwrap();
        assert_eq!(cut(&grid, 0, 1 << 30), [(0, 1 << 30)]);
        assert_eq!(
            cut(&grid, 0xc0000, (2 << 30) - 0xc0000),
            [(0xc0000, (1 << 30) - 0xc0000), (1 << 30, 1 << 30)]
        );
        assert_eq!(cut(&grid, 4 << 30, 1 << 30), [(4 << 30, 1 << 30)]);
        assert_eq!(
            cut(&grid, (4 << 30) + 0x1000, 1 << 30),
            [((4 << 30) + 0x1000, (1 << 30) - 0x1000), (5 << 30, 0x1000)]
        );
    }

    #[test]
    fn cuts_where_the_caller_says() {
        // In any order, twice, at both ends of the address space, and where an entry ends anyway.
        let cuts = vec![1 << 30, MIB, 0, u64::MAX - 0xfff, MIB, 3 * MIB];
        let grid = Grid::new(Grid::DEFAULT_ENTRY).unwrap().with_cuts(cuts);
        assert_eq!(cut(&grid, 0, 0xa0000), [(0, 0xa0000)]);
        assert_eq!(
            cut(&grid, 0xc0000, (2 << 30) - 0xc0000),
            [(0xc0000, 0x40000), (MIB, 2 * MIB), (3 * MIB, (1 << 30) - 3 * MIB), (1 << 30, 1 << 30)]
        );
        assert_eq!(cut(&grid, MIB, MIB), [(MIB, MIB)]);
        assert_eq!(
            cut(&grid, u64::MAX - 0x1fff, 0x2000),
            [(u64::MAX - 0x1fff, 0x1000), (u64::MAX - 0xfff, 0x1000)]
        );
        let coarsest = std::iter::successors(Some(grid), Grid::coarser).last().unwrap();
        assert_eq!(cut(&coarsest, 0, 4 << 30).len(), 4, "the caller's cuts stay");
    }

    #[test]
    fn reaches_the_last_page() {
        let grid = Grid::new(Grid::DEFAULT_ENTRY).unwrap();
        assert_eq!(cut(&grid, u64::MAX - 0xfff, 0x1000), [(u64::MAX - 0xfff, 0x1000)]);
        let last_two_cells = cut(&grid, u64::MAX - (1 << 30) - 0xfff, (1 << 30) + 0x1000);
        assert_eq!(
            last_two_cells,
            [(u64::MAX - (1 << 30) - 0xfff, 0x1000), (u64::MAX - (1 << 30) + 1, 1 << 30)]
        );
    }

    #[test]
    fn only_powers_of_two_of_a_superpage_or_more() {
        assert!(Grid::new(0).is_none());
        assert!(Grid::new(MIB).is_none());
        assert!(Grid::new(3 * MIB).is_none());
        assert!(Grid::new(2 * MIB).is_some());
        let coarsest = std::iter::successors(Grid::new(2 * MIB), Grid::coarser).last().unwrap();
        assert_eq!(coarsest.entry_size(), 1 << 63);
        assert_eq!(cut(&coarsest, MIB, u64::MAX - MIB).len(), 2);
    }
}
