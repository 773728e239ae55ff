//! The size of the pages that back a mapping, which decides how the work is cut.
//!
//! Two threads that fault in the same page wait for each other: the kernel clears it once, under a lock. So a thread
//! takes at least a page at a time: 1 GiB of hugetlbfs, or a PMD of 512 MiB on arm64.

use std::fs;
use std::sync::OnceLock;

use super::HostRange;
use crate::addr::{BASE_PAGE, HUGE_PAGE};
use crate::sys::procmap::Maps;

/// Looks up the sizes of pages. Memory with a size that cannot be found out counts as base pages: work is then cut as
/// for most memory, which is right but slower on larger pages.
pub(super) struct PageSizes {
    maps: Option<Maps>,
}

impl PageSizes {
    pub fn open() -> Self {
        Self { maps: Maps::open() }
    }

    /// The largest page that can back the beginning of `piece`.
    pub fn of(&self, piece: &HostRange) -> u64 {
        let page = self.maps.as_ref().and_then(|maps| maps.page_size(piece.hva)).unwrap_or(BASE_PAGE);
        // Base pages may become transparent huge ones.
        page.max(transparent_huge_page())
    }
}

/// The size of a transparent huge page: 2 MiB, but 32 or 512 MiB where base pages are larger.
fn transparent_huge_page() -> u64 {
    static SIZE: OnceLock<u64> = OnceLock::new();
    *SIZE.get_or_init(|| {
        let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").ok();
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(HUGE_PAGE)
    })
}
