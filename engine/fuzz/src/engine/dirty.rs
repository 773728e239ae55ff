//! Which pages devices have written to, page by page.

use std::collections::BTreeSet;

use vfio_fast_testing::UNIT;

use super::Span;

/// Pages since tracking was started, as units and pages in them.
pub(super) struct Dirty {
    page: u64,
    /// Written and not reported since, and wanted all the time.
    expected: BTreeSet<(u64, u64)>,
    /// Written and not reported since.
    possible: BTreeSet<(u64, u64)>,
}

impl Dirty {
    pub(super) fn new(page: u64) -> Self {
        Self { page, expected: BTreeSet::new(), possible: BTreeSet::new() }
    }

    pub(super) fn written(&mut self, unit: u64, page: u64) {
        self.expected.insert((unit, page));
        self.possible.insert((unit, page));
    }

    /// The caller has unmapped this unit.
    pub(super) fn may_be_lost(&mut self, unit: u64) {
        self.expected.retain(|(of, _)| *of != unit);
    }

    /// Compares a report, which may be incomplete if the call has failed.
    pub(super) fn reported(&mut self, span: Span, bitmap: &[u64], complete: bool) {
        let pages = UNIT / self.page;
        let is_set = |bit: u64| bitmap[(bit / 64) as usize] >> (bit % 64) & 1 == 1;
        for bit in 0..bitmap.len() as u64 * 64 {
            let page = (span.start() + bit / pages, bit % pages);
            if is_set(bit) {
                assert!(bit < span.units() * pages, "a bit behind the end is set");
                assert!(self.possible.remove(&page), "{page:?} was not written since the last report");
                self.expected.remove(&page);
            } else {
                let lost = complete && bit < span.units() * pages && self.expected.contains(&page);
                assert!(!lost, "{page:?} was written and is not reported");
            }
        }
    }
}

/// A bitmap with a bit for each page.
pub(super) fn bitmap(span: Span, page: u64) -> Vec<u64> {
    vec![0; (span.units() * UNIT / page).div_ceil(64) as usize]
}
