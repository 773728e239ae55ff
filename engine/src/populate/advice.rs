//! Requests huge pages before the memory is faulted in.
//!
//! Not during the work: the advice takes the lock of the address space for writing, so every thread would have to wait
//! until the calls of all others have returned.

use super::HostRange;
use crate::addr::{HUGE_PAGE, HostVa};
use crate::sys::madvise;
use crate::sys::smaps::{self, Mapping};

/// The mappings of `pieces`, if there is something to advise and little to walk: the kernel walks what is present of
/// all mappings before. With more in memory than is `missing`, reading could take longer than faulting in, and nothing
/// is listed.
pub(super) fn mappings(pieces: &[HostRange], missing: u64) -> Vec<Mapping> {
    let regions = regions(pieces);
    let start = regions.iter().map(|region| region.hva.raw()).min();
    let end = regions.iter().map(|region| region.hva.raw().saturating_add(region.bytes)).max();
    let Some(range) = start.zip(end).map(|(start, end)| start..end) else { return Vec::new() };
    if smaps::resident().is_none_or(|resident| resident >= missing) {
        return Vec::new();
    }
    smaps::mappings(range).unwrap_or_default()
}

/// Requests huge pages for all contiguous writable memory in `pieces` that can contain one, where the caller has not
/// advised for or against them. Memory that is not in `mappings` keeps the advice that it has. Returns the number of
/// calls.
pub(super) fn prefer_huge_pages(pieces: &[HostRange], mappings: &[Mapping]) -> u64 {
    let mut calls = 0;
    for region in regions(pieces) {
        let (start, end) = (region.hva.raw(), region.hva.raw().saturating_add(region.bytes));
        for mapping in mappings.iter().filter(|mapping| !mapping.advised && mapping.page < HUGE_PAGE) {
            let (start, end) = (mapping.range.start.max(start), mapping.range.end.min(end));
            if start < end && end - start >= HUGE_PAGE {
                // Ignored, because only the pages show the effect: a kernel can accept the advice and never follow it.
                let _ = madvise::prefer_huge_pages(HostVa::from_raw(start), end - start);
                calls += 1;
            }
        }
    }
    calls
}

/// The contiguous writable memory in `pieces` that can contain a huge page.
fn regions(pieces: &[HostRange]) -> Vec<HostRange> {
    let mut regions: Vec<HostRange> = Vec::new();
    for piece in pieces.iter().filter(|piece| piece.writable && piece.bytes > 0) {
        match regions.last_mut() {
            Some(last) if last.hva.checked_add(last.bytes) == Some(piece.hva) => last.bytes += piece.bytes,
            _ => regions.push(*piece),
        }
    }
    regions.retain(|region| region.bytes >= HUGE_PAGE);
    regions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_one_mapping_are_one_region() {
        let piece = |start: u64, pages: u64, writable| HostRange {
            hva: HostVa::from_raw(start << 12),
            bytes: pages << 12,
            writable,
        };
        let pieces = [
            piece(0, 256, true),
            piece(256, 256, true),
            piece(512, 0, true),
            piece(512, 512, true),
            piece(1024, 512, false),
            piece(1536, 511, true),
            piece(4096, 512, true),
        ];
        assert_eq!(regions(&pieces), [piece(0, 1024, true), piece(4096, 512, true)]);
    }

    #[test]
    fn the_advice_of_the_caller_is_left_alone() {
        // Nothing is mapped there, so the advice itself has no effect.
        let piece = HostRange { hva: HostVa::from_raw(1 << 62), bytes: 8 * HUGE_PAGE, writable: true };
        let mapping = |number: u64, advised, page| {
            let start = piece.hva.raw() + number * 2 * HUGE_PAGE;
            Mapping { range: start..start + 2 * HUGE_PAGE, page, advised }
        };
        let mappings = [mapping(0, true, 4096), mapping(1, false, 4096), mapping(2, false, HUGE_PAGE)];
        assert_eq!(prefer_huge_pages(&[piece], &mappings), 1);
        assert_eq!(prefer_huge_pages(&[piece], &[]), 0);
        assert_eq!(prefer_huge_pages(&[HostRange { writable: false, ..piece }], &mappings), 0);
    }
}
