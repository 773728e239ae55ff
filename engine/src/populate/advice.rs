//! Requests huge pages before the memory is faulted in.
//!
//! Not during the work: the advice takes the lock of the address space for writing, so every thread would have to wait
//! until the calls of all others have returned.

use super::HostRange;
use crate::addr::HUGE_PAGE;
use crate::sys::madvise;

/// Requests huge pages for all contiguous writable memory in `pieces` that can contain one.
pub(super) fn prefer_huge_pages(pieces: &[HostRange]) {
    for region in regions(pieces) {
        // Ignored, because only the pages show the effect: a kernel can accept the advice and never follow it.
        let _ = madvise::prefer_huge_pages(region.hva, region.bytes);
    }
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
    use crate::addr::HostVa;

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
}
