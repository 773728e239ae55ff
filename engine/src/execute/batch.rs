//! How much one unmap call takes.

use std::time::Duration;

use crate::addr::IovaRange;
use crate::reconcile::table::MapTable;

/// Maximum size of one unmap call, which always covers at least one entry: large enough to save calls, small enough
/// to limit how long a call holds the container's lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Maximum number of entries; 0: as many as previous calls allow.
    pub entries: u64,
    /// Maximum number of bytes of these entries.
    pub bytes: u64,
}

impl Default for Batch {
    fn default() -> Self {
        Self { entries: 0, bytes: 4 << 30 }
    }
}

/// One unmap call: a range that the table has whole entries in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Call {
    pub range: IovaRange,
    /// The number of entries in it.
    pub entries: u64,
    /// Bytes of these entries, which the kernel must report.
    pub bytes: u64,
}

impl Call {
    /// The call for the first entries in `range`, within the limits of `batch`; `None` if no entry is left there.
    pub fn first(table: &MapTable, range: IovaRange, batch: Batch) -> Option<Self> {
        let mut call: Option<Self> = None;
        for entry in table.overlapping(range) {
            let (found, bytes) = (entry.range, entry.range.length());
            let Some(Self { range, entries, bytes: before }) = call else {
                call = Some(Self { range: found, entries: 1, bytes });
                continue;
            };
            let bytes = before.saturating_add(bytes);
            if entries >= batch.entries || bytes > batch.bytes {
                break;
            }
            let range = IovaRange::from_bounds(range.start(), found.last())?;
            call = Some(Self { range, entries: entries + 1, bytes });
        }
        call
    }

    /// The calls for everything in `range`.
    pub fn all(table: &MapTable, range: IovaRange, batch: Batch) -> impl Iterator<Item = Self> {
        let mut rest = Some(range);
        std::iter::from_fn(move || {
            let (call, after) = Self::split(table, rest?, batch)?;
            rest = after;
            Some(call)
        })
    }

    /// The first call, and the range after it.
    pub fn split(table: &MapTable, range: IovaRange, batch: Batch) -> Option<(Self, Option<IovaRange>)> {
        let call = Self::first(table, range, batch)?;
        let next = call.range.last().checked_add(1);
        Some((call, next.and_then(|next| IovaRange::from_bounds(next, range.last()))))
    }
}

/// The number of entries that an unmap call may take, adapted to the time that calls take. What an entry costs depends
/// on its pages, on the IOMMU and on the host.
#[derive(Debug)]
pub(super) struct Pace {
    batch: Batch,
    adapts: bool,
}

impl Pace {
    /// The number of entries of the first call, and the minimum for later ones.
    const MIN: u64 = 64;
    /// The maximum for later calls.
    const MAX: u64 = 64 << 10;
    /// The time that calls may take: others wait for the container no longer than for a map call of 1 GiB.
    const TARGET: Duration = Duration::from_millis(4);

    pub fn new(batch: Batch) -> Self {
        let adapts = batch.entries == 0;
        Self { batch: if adapts { Batch { entries: Self::MIN, ..batch } } else { batch }, adapts }
    }

    /// The limits of the next call.
    pub fn batch(&self) -> Batch {
        self.batch
    }

    /// Adapts to a call of this many entries.
    pub fn record(&mut self, entries: u64, took: Duration) {
        let bound = &mut self.batch.entries;
        if !self.adapts {
        } else if took > Self::TARGET {
            *bound = (*bound / 2).max(Self::MIN);
        } else if entries == *bound && took <= Self::TARGET / 4 {
            *bound = (*bound * 2).min(Self::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of the calls for `total` entries that each take `each`.
    fn calls(batch: Batch, total: u64, each: Duration) -> Vec<u64> {
        let (mut pace, mut left, mut calls) = (Pace::new(batch), total, Vec::new());
        while left > 0 {
            let entries = left.min(pace.batch().entries);
            pace.record(entries, each * u32::try_from(entries).unwrap());
            calls.push(entries);
            left -= entries;
        }
        calls
    }

    #[test]
    fn calls_grow_until_they_take_a_quarter_of_the_target() {
        let micros = Duration::from_micros;
        let fast = calls(Batch::default(), 262_144, micros(1));
        assert_eq!(fast[..6], [64, 128, 256, 512, 1024, 1024]);
        assert_eq!(fast.len(), 4 + (262_144 - 960_usize).div_ceil(1024));
        assert_eq!(calls(Batch::default(), 256, micros(40)), [64; 4]);
        assert_eq!(calls(Batch::default(), 1 << 20, Duration::ZERO).iter().max(), Some(&Pace::MAX));
        // Many entries without cost take few calls.
        assert_eq!(calls(Batch::default(), 262_144, Duration::ZERO).len(), 14);
    }

    #[test]
    fn calls_shrink_when_entries_become_slow() {
        let mut pace = Pace::new(Batch::default());
        for _ in 0..4 {
            pace.record(pace.batch().entries, Duration::ZERO);
        }
        assert_eq!(pace.batch().entries, 1024);
        let mut bounds = Vec::new();
        for _ in 0..6 {
            pace.record(pace.batch().entries, Duration::from_millis(5));
            bounds.push(pace.batch().entries);
        }
        assert_eq!(bounds, [512, 256, 128, 64, 64, 64]);
        // A call that took fewer entries than it could says nothing about more of them.
        pace.record(1, Duration::ZERO);
        assert_eq!(pace.batch().entries, 64);
        // Between a quarter of the target and the target the size stays.
        pace.record(64, Duration::from_millis(2));
        assert_eq!(pace.batch().entries, 64);
    }

    #[test]
    fn a_fixed_maximum_stays() {
        let fixed = Batch { entries: 100, ..Batch::default() };
        assert_eq!(calls(fixed, 250, Duration::ZERO), [100, 100, 50]);
        assert_eq!(calls(fixed, 250, Duration::from_secs(1)), [100, 100, 50]);
    }
}
