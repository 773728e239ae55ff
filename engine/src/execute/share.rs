//! Entries that threads can share, where the map calls themselves fault memory in.

use crate::addr::IovaRange;
use crate::reconcile::table::{Entry, Generation};
use crate::region::Kind;
use crate::sys::procmap::Maps;

/// Entries for each thread: a thread that has finished early takes another one.
const ENTRIES_PER_THREAD: u64 = 4;

/// Minimum size of a part in bytes: the largest page that most IOMMUs have below 1 GiB, eight times.
const MIN_PART: u64 = 16 << 20;

/// Cuts `entries` at multiples of a power of two, if there are too few of them for `threads` threads to share.
///
/// A cut through a huge page would cost the IOMMU's superpage, so no part is smaller than the page behind it. Exact
/// entries and device memory stay whole.
pub(super) fn share(entries: Vec<Entry>, threads: usize) -> Vec<Entry> {
    let total = entries.iter().fold(0u64, |sum, entry| sum.saturating_add(entry.range.length()));
    let parts = ENTRIES_PER_THREAD.saturating_mul(threads as u64);
    if threads < 2 || entries.len() as u64 >= parts {
        return entries;
    }
    let part = floor_power_of_two(total / parts).max(MIN_PART);
    cut_all(entries, part)
}

/// Cuts `entries` at multiples of `part`, a power of two, but not inside a page of their memory. Exact entries and
/// device memory stay whole.
pub fn cut_all(entries: Vec<Entry>, part: u64) -> Vec<Entry> {
    let mappings = Maps::open();
    let mut parts = Vec::with_capacity(entries.len());
    for entry in entries {
        let whole = entry.kind != Kind::Ram || entry.generation != Generation::SHARED;
        if whole || entry.range.length() <= part {
            parts.push(entry);
            continue;
        }
        let page = mappings.as_ref().and_then(|mappings| mappings.page_size(entry.hva)).unwrap_or(0);
        cut(&entry, part.max(page), &mut parts);
    }
    parts
}

/// The largest power of two that is not above `value`; 0 for 0.
fn floor_power_of_two(value: u64) -> u64 {
    value.checked_ilog2().map_or(0, |bits| 1 << bits)
}

/// Adds the parts of `entry` between multiples of `size`, a power of two.
fn cut(entry: &Entry, size: u64, parts: &mut Vec<Entry>) {
    let mut start = entry.range.start();
    loop {
        let last = (start | (size - 1)).min(entry.range.last());
        let range = IovaRange::from_bounds(start, last).unwrap_or(entry.range);
        parts.push(Entry { range, hva: entry.hva_at(start), ..*entry });
        if last == entry.range.last() {
            return;
        }
        start = last + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{HostVa, Iova};
    use crate::region::{Backing, Perm};

    const MIB: u64 = 1 << 20;

    fn entry(start: u64, bytes: u64) -> Entry {
        let range = IovaRange::new(Iova(start), bytes).unwrap();
        let (perm, kind, generation) = (Perm::ReadWrite, Kind::Ram, Generation::SHARED);
        // Nothing is mapped there, so the page size is not known.
        let hva = HostVa::from_raw((1 << 62) + start);
        Entry { range, hva, perm, kind, backing: Backing(1), generation }
    }

    fn parts(entries: &[Entry], threads: usize) -> Vec<(u64, u64)> {
        let shared = share(entries.to_vec(), threads);
        assert!(shared.iter().all(|entry| entry.hva.raw() == (1 << 62) + entry.range.start()));
        shared.iter().map(|entry| (entry.range.start() / MIB, entry.range.length() / MIB)).collect()
    }

    #[test]
    fn a_small_guest_is_cut_for_its_threads() {
        let guest = [entry(0, MIB), entry(MIB, 1023 * MIB), entry(1024 * MIB, 1024 * MIB)];
        let quarters = [
            (0, 1),
            (1, 255),
            (256, 256),
            (512, 256),
            (768, 256),
            (1024, 256),
            (1280, 256),
            (1536, 256),
            (1792, 256),
        ];
        assert_eq!(parts(&guest, 2), quarters);
        assert_eq!(parts(&guest, 1).len(), 3, "nobody to share with");
        assert_eq!(parts(&guest, 64).len(), 1 + 2048 / 16);
    }

    #[test]
    fn what_is_many_or_small_or_exact_or_a_device_stays_whole() {
        let many: Vec<Entry> = (0..8).map(|number| entry(number << 30, 1 << 30)).collect();
        assert_eq!(share(many.clone(), 2), many);
        let small = [entry(0, 16 * MIB)];
        assert_eq!(share(small.to_vec(), 8), small);
        let exact = Entry { generation: Generation(1), ..entry(0, 1 << 30) };
        let device = Entry { kind: Kind::Device, ..entry(1 << 30, 1 << 30) };
        assert_eq!(share(vec![exact, device], 8), [exact, device]);
    }

    #[test]
    fn the_end_of_the_address_space_is_an_end() {
        let range = IovaRange::from_bounds(u64::MAX - (64 * MIB - 1), u64::MAX).unwrap();
        let top = Entry { range, ..entry(0, MIB) };
        let shared = share(vec![top], 2);
        assert_eq!(shared.len(), 4);
        assert_eq!(shared[3].range.last(), u64::MAX);
    }
}
