//! The difference between what is wanted and what the kernel holds.

use std::borrow::Cow;

use crate::addr::IovaRange;
use crate::reconcile::grid::Grid;
use crate::reconcile::table::{Entry, MapTable};
use crate::reconcile::wanted::{Wanted, WantedSet};
use crate::region::{Kind, Region};

/// Which gaps between two entries an unmap call may cover. No other entry of the table lies in such a gap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gaps {
    /// None: a call covers adjacent entries only.
    None,
    /// Those inside one range that the caller unmapped. Elsewhere the container can hold mappings of other users.
    Unmapped,
    /// All: the container holds nothing that is not in the table.
    All,
}

/// A range of whole entries to unmap, and everything that the table has there. The kernel accepts one call for it, but
/// that call can take too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unmap {
    /// The range to unmap, from the beginning of its first entry to the end of its last one.
    pub range: IovaRange,
    /// The number of entries in it.
    pub entries: u64,
    /// Bytes of these entries.
    pub bytes: u64,
    /// Bytes of these entries that count against RLIMIT_MEMLOCK.
    pub ram_bytes: u64,
}

/// The changes to make: first all unmaps, then all maps, in the order of the lists.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Ranges to unmap.
    pub unmaps: Vec<Unmap>,
    /// Entries to map: RAM, and after it device memory, each ascending. If entries run out, they are RAM's first.
    pub maps: Vec<Entry>,
    /// Entries that the transaction touched and that stay mapped.
    pub kept_entries: u64,
    /// Bytes of the kept entries.
    pub kept_bytes: u64,
    /// Bytes that are unmapped only to be mapped again at the same addresses.
    pub remapped_bytes: u64,
    /// Everything that the plan can change: the ranges that were touched, and every entry that it unmaps.
    pub scope: Vec<IovaRange>,
}

impl Plan {
    /// Bytes that will be unmapped or mapped.
    pub fn bytes(&self) -> u64 {
        let unmaps = self.unmaps.iter().map(|unmap| unmap.bytes);
        unmaps.chain(self.maps.iter().map(|entry| entry.range.length())).fold(0, u64::saturating_add)
    }
}

/// The number of new entries from which on a plan takes a coarser grid, where the kernel has no limit: a table of so many
/// takes 100 MB. At the default entry size they cover 1 PiB.
pub const MOST_ENTRIES: u64 = 1 << 20;

/// The plan needs more entries for RAM than the container can hold, even on the coarsest grid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom {
    /// Entries for RAM that the plan adds.
    pub needed: u64,
    /// Entries left after the plan's unmaps.
    pub available: u64,
}

/// Computes the calls that turn `table` into `wanted`. Only the ranges in `touched` may differ.
///
/// An entry that is still wanted as a whole is kept, whatever the grid: it needs no new pin, and devices keep access
/// to its memory. The grid only cuts new entries. It becomes coarser only if the plan would otherwise exceed
/// `capacity`, the total number of entries that the container can hold, or map more than a million entries.
pub fn plan(
    wanted: &WantedSet,
    table: &MapTable,
    touched: &[IovaRange],
    grid: &Grid,
    gaps: Gaps,
    capacity: Option<u64>,
) -> Result<Plan, NoRoom> {
    plan_keeping(wanted, table, touched, grid, gaps, capacity, |_, whole| whole)
}

/// The same, but keeps the entries for which `keeps` returns true. Its second argument says whether an entry is still
/// wanted as a whole. Where an entry that is kept maps something that is wanted, it maps that as it is wanted.
pub fn plan_keeping(
    wanted: &WantedSet,
    table: &MapTable,
    touched: &[IovaRange],
    grid: &Grid,
    gaps: Gaps,
    capacity: Option<u64>,
    keeps: impl Fn(&Entry, bool) -> bool,
) -> Result<Plan, NoRoom> {
    let mut plan = Plan::default();
    if touched.is_empty() {
        return Ok(plan);
    }
    // The entries that overlap what was touched, and whether each is kept.
    let mut found: Vec<(&Entry, bool)> = Vec::new();
    let touched = merged(touched.to_vec());
    for range in &touched {
        for entry in table.overlapping(*range) {
            let kept = keeps(entry, wanted.covers(entry, *range));
            match found.last_mut() {
                // An entry that overlaps two ranges is found twice in succession.
                Some((last, always)) if last.range.start() == entry.range.start() => *always &= kept,
                _ => found.push((entry, kept)),
            }
        }
    }
    let kept: Vec<IovaRange> = found.iter().filter(|(_, kept)| *kept).map(|(entry, _)| entry.range).collect();
    let gone: Vec<&Entry> = found.iter().filter(|(_, kept)| !*kept).map(|(entry, _)| *entry).collect();
    plan.kept_entries = kept.len() as u64;
    plan.kept_bytes = kept.iter().fold(0, |sum, range| sum.saturating_add(range.length()));
    plan.scope = with_entries(touched, &gone);
    plan.unmaps = grouped(&gone, wanted, table, gaps);

    let stretches = missing_stretches(wanted, &plan.scope, &kept);
    let remaining = table.len() - gone.len() as u64;
    let room = capacity.map(|capacity| capacity.saturating_sub(remaining));
    let grid = fitting(&stretches, grid, room)?;
    let of = |kind| stretches.iter().filter(move |stretch: &&Stretch| stretch.entry.kind == kind);
    plan.maps = of(Kind::Ram).chain(of(Kind::Device)).flat_map(|stretch| stretch.entries(&grid)).collect();
    plan.remapped_bytes = remapped(&gone, &plan.maps);
    Ok(plan)
}

/// The grid on which `stretches` are few enough entries: `grid`, or a coarser one. An error if `room` does not suffice
/// for RAM. Device memory without room is left to the kernel, which refuses it: it is mapped last and is not necessary.
///
/// Only counts: an entry takes memory, and on `grid` there may be more than this machine can hold.
fn fitting<'a>(stretches: &[Stretch], grid: &'a Grid, room: Option<u64>) -> Result<Cow<'a, Grid>, NoRoom> {
    let least = stretches.len() as u64;
    let most = MOST_ENTRIES.max(least).min(room.unwrap_or(u64::MAX));
    let mut grid = Cow::Borrowed(grid);
    loop {
        let entries = |stretch: &Stretch| stretch.count(&grid);
        let needed: u64 = stretches.iter().map(entries).sum();
        if needed <= most {
            return Ok(grid);
        }
        if let Some(coarser) = grid.coarser().filter(|_| needed > least) {
            grid = Cow::Owned(coarser);
            continue;
        }
        let needed = stretches.iter().filter(|stretch| stretch.entry.kind == Kind::Ram).map(entries).sum();
        return match room {
            Some(available) if needed > available => Err(NoRoom { needed, available }),
            _ => Ok(grid),
        };
    }
}

/// Wanted memory that can become one entry if the grid allows it.
struct Stretch {
    entry: Entry,
    exact: bool,
}

impl Stretch {
    fn new(wanted: &Wanted, part: Region) -> Self {
        Self { entry: Entry::of(&part, wanted.generation), exact: part.exact }
    }

    /// The number of its entries.
    fn count(&self, grid: &Grid) -> u64 {
        if self.exact { 1 } else { grid.count(self.entry.range) }
    }

    fn entries(&self, grid: &Grid) -> impl Iterator<Item = Entry> {
        // An exact stretch is never cut. It may be of any size: the grid could have any number of pieces there.
        let (whole, cut) =
            if self.exact { (Some(self.entry.range), None) } else { (None, Some(self.entry.range)) };
        let pieces = whole.into_iter().chain(cut.into_iter().flat_map(move |range| grid.pieces(range)));
        pieces.map(|range| Entry { range, hva: self.entry.hva_at(range.start()), ..self.entry })
    }
}

/// The wanted memory inside `scope` that no kept entry covers, with neighbours joined.
fn missing_stretches(wanted: &WantedSet, scope: &[IovaRange], kept: &[IovaRange]) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = Vec::new();
    // The region at the end of the last stretch, if that reaches the region's end.
    let mut open: Option<Wanted> = None;
    for range in scope {
        for wanted in wanted.overlapping(*range) {
            let Some(inside) = wanted.region.range.intersection(*range) else { continue };
            for hole in holes(inside, kept) {
                let Some(part) = wanted.region.clip(hole) else { continue };
                let begins = part.range.start() == wanted.region.range.start();
                let joins = open.take().is_some_and(|previous| begins && previous.joins(wanted));
                let last = stretches.last_mut().filter(|_| joins);
                let longer = last.and_then(|last| {
                    let range = IovaRange::from_bounds(last.entry.range.start(), part.range.last())?;
                    Some((last, range))
                });
                match longer {
                    Some((last, range)) => last.entry.range = range,
                    None => stretches.push(Stretch::new(wanted, part)),
                }
                open = (part.range.last() == wanted.region.range.last()).then_some(*wanted);
            }
        }
    }
    stretches
}

/// The parts of `range` that no kept entry covers. `kept` is ascending and disjoint.
fn holes(range: IovaRange, kept: &[IovaRange]) -> impl Iterator<Item = IovaRange> {
    let first = kept.partition_point(|entry| entry.last() < range.start());
    let mut kept = kept[first..].iter().take_while(move |entry| entry.start() <= range.last());
    let mut rest = Some(range);
    std::iter::from_fn(move || {
        while let Some(open) = rest {
            let Some(entry) = kept.next() else { return rest.take() };
            let (before, after) = open.without(*entry);
            rest = after;
            if before.is_some() {
                return before;
            }
        }
        None
    })
}

/// Groups entries that one call can unmap. `gone` is ascending and a part of `table`.
fn grouped(gone: &[&Entry], wanted: &WantedSet, table: &MapTable, gaps: Gaps) -> Vec<Unmap> {
    let unmapped = match gaps {
        Gaps::Unmapped if gone.len() > 1 => merged(wanted.unmapped().to_vec()),
        _ => Vec::new(),
    };
    let may_cover = |gap: IovaRange| match gaps {
        Gaps::None => false,
        Gaps::Unmapped => {
            let next = unmapped.partition_point(|range| range.last() < gap.start());
            unmapped.get(next).is_some_and(|range| range.contains(gap))
        }
        Gaps::All => true,
    };
    let mut unmaps: Vec<Unmap> = Vec::new();
    let mut entries = table.overlapping(IovaRange::ALL);
    for entry in gone {
        let follows = entries.next() == Some(entry);
        let rest = IovaRange::from_bounds(entry.range.start(), u64::MAX);
        if let Some(rest) = rest.filter(|_| !follows) {
            entries = table.overlapping(rest);
            entries.next();
        }
        let bytes = entry.range.length();
        let ram_bytes = if entry.kind == Kind::Ram { bytes } else { 0 };
        let joined = unmaps.last().filter(|_| follows).and_then(|last| {
            let range = IovaRange::from_bounds(last.range.start(), entry.range.last())?;
            let gap = IovaRange::from_bounds(last.range.last() + 1, entry.range.start().wrapping_sub(1));
            // No unmap call of one range takes the whole space, whose length does not fit in 64 bits.
            (gap.is_none_or(may_cover) && range != IovaRange::ALL).then_some(range)
        });
        match (joined, unmaps.last_mut()) {
            (Some(range), Some(last)) => {
                let ram_bytes = last.ram_bytes + ram_bytes;
                *last = Unmap { range, entries: last.entries + 1, bytes: last.bytes + bytes, ram_bytes };
            }
            _ => unmaps.push(Unmap { range: entry.range, entries: 1, bytes, ram_bytes }),
        }
    }
    unmaps
}

/// `ranges`, which are merged, and the entries that they overlap, merged with them.
fn with_entries(mut ranges: Vec<IovaRange>, entries: &[&Entry]) -> Vec<IovaRange> {
    let before = ranges.len();
    let mut inside = 0;
    for entry in entries {
        while ranges[inside..before].first().is_some_and(|range| range.last() < entry.range.last()) {
            inside += 1;
        }
        if !ranges[inside..before].first().is_some_and(|range| range.contains(entry.range)) {
            ranges.push(entry.range);
        }
    }
    if ranges.len() == before { ranges } else { merged(ranges) }
}

/// The number of bytes of `maps` that `gone` maps identically. `gone` is ascending; both are disjoint.
fn remapped(gone: &[&Entry], maps: &[Entry]) -> u64 {
    let mut bytes = 0u64;
    for entry in maps {
        let first = gone.partition_point(|gone| gone.range.last() < entry.range.start());
        for old in gone[first..].iter().take_while(|old| old.range.start() <= entry.range.last()) {
            let shared = old.range.intersection(entry.range).filter(|shared| old.agrees_with(entry, *shared));
            bytes = bytes.saturating_add(shared.map_or(0, IovaRange::length));
        }
    }
    bytes
}

/// Sorts the ranges, and joins those that overlap or are adjacent.
pub fn merged(mut ranges: Vec<IovaRange>) -> Vec<IovaRange> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let joins = last.last().checked_add(1).is_none_or(|end| next.start() <= end);
        let joined = IovaRange::from_bounds(last.start(), last.last().max(next.last())).filter(|_| joins);
        joined.inspect(|joined| *last = *joined).is_some()
    });
    ranges
}
