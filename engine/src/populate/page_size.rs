//! The size of the pages that back a mapping, which decides how the work is cut.
//!
//! Two threads that fault in the same page wait for each other: the kernel clears it once, under a lock. So a thread
//! takes at least a page at a time: 1 GiB of hugetlbfs, or a PMD of 512 MiB on arm64.

use std::sync::OnceLock;

use super::HostRange;
use crate::addr::HUGE_PAGE;
use crate::sys::page::base_page;
use crate::sys::proc;
use crate::sys::procmap::Maps;
use crate::sys::smaps::Mapping;

/// Looks up the sizes of pages. Memory with a size that cannot be found out counts as base pages: work is then cut as
/// for most memory, which is right but slower on larger pages.
pub(super) struct PageSizes<'a> {
    maps: Option<Maps>,
    /// For a kernel without PROCMAP_QUERY.
    listed: &'a [Mapping],
}

impl<'a> PageSizes<'a> {
    pub fn new(maps: Option<Maps>, listed: &'a [Mapping]) -> Self {
        Self { maps, listed }
    }

    /// The largest page that can back the beginning of `piece`.
    pub fn of(&self, piece: &HostRange) -> u64 {
        let page = match &self.maps {
            Some(maps) => maps.page_size(piece.hva),
            None => page_size(self.listed, piece),
        };
        // Base pages may become transparent huge ones.
        page.unwrap_or_else(base_page).max(transparent_huge_page())
    }
}

fn page_size(listed: &[Mapping], piece: &HostRange) -> Option<u64> {
    listed.iter().find(|mapping| mapping.range.contains(&piece.hva.raw())).map(|mapping| mapping.page)
}

/// The size of a transparent huge page: 2 MiB, but 32 or 512 MiB where base pages are larger.
fn transparent_huge_page() -> u64 {
    static SIZE: OnceLock<u64> = OnceLock::new();
    *SIZE.get_or_init(|| {
        let text = proc::read("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(HUGE_PAGE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::HostVa;

    #[test]
    fn without_the_query_the_list_decides() {
        let mapping = |start: u64, page| Mapping { range: start..start + (4 << 30), page, advised: false };
        let listed = [mapping(1 << 40, 4 << 10), mapping(1 << 41, 1 << 30)];
        let sizes = PageSizes::new(None, &listed);
        let size =
            |start| sizes.of(&HostRange { hva: HostVa::from_raw(start), bytes: 1 << 30, writable: true });
        assert_eq!(size((1 << 41) + (1 << 30)), 1 << 30);
        assert_eq!([size(1 << 40), size(1 << 42)], [transparent_huge_page(); 2]);
    }
}
