//! Finds the present pages of a host range: PAGEMAP_SCAN on /proc/self/pagemap (Linux 6.7).
//!
//! A scan takes two or three nanoseconds per page-table entry, less than a hundredth of the time of faulting a page
//! in, and takes no lock that page faults of other threads wait for.
#![allow(unsafe_code)]

use std::fs::File;
use std::mem::size_of;
use std::os::fd::AsRawFd;

use crate::addr::{HUGE_PAGE, HostVa};
use crate::error::Errno;
use crate::sys::ioctl::number;
use crate::sys::madvise::Access;
use crate::sys::page::base_page;
use crate::sys::proc;

/// The page tables of this process.
#[derive(Debug)]
pub(crate) struct Pagemap {
    file: File,
}

/// `struct page_region` of linux/fs.h: adjacent pages of the same categories.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct PageRegion {
    pub start: u64,
    /// The first byte after it.
    pub end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

impl PageRegion {
    /// The pages from `start` to `end`, exclusive.
    pub fn new(start: u64, end: u64) -> Self {
        Self { start, end, categories: 0 }
    }
}

const _: () = assert!(size_of::<PageRegion>() == 24 && size_of::<PmScanArg>() == 96);

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PAGE_IS_HUGE: u64 = 1 << 6;

/// Present bytes, by the kind of page that maps them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Mapped {
    /// In huge pages (THP or hugetlbfs).
    pub huge: u64,
    /// In base pages of anonymous memory.
    pub small_anonymous: u64,
    /// In base pages of files: shmem, memfd and ordinary ones.
    pub small_file: u64,
}

impl Pagemap {
    /// `None` if there is no /proc, or the kernel is older: then no page is known to be present.
    pub fn open() -> Option<Self> {
        let pagemap = Self { file: proc::open("/proc/self/pagemap")? };
        // Every kernel with this request accepts an empty range.
        pagemap.scan(&mut PmScanArg::default(), &mut []).ok().map(|_| pagemap)
    }

    /// Lists the missing pages of the `bytes` bytes at `hva`: those where an `access` would fault. Stops when `found`
    /// is full; the list is then complete up to the end of its last element.
    ///
    /// A page that a write would have to copy (after a fork) is not missing: the pin copies it. A shared zero page is
    /// missing for a write. If nothing is mapped at `hva`, or it has no pages of its own (device memory), all bytes
    /// are missing. The scan does not see such memory behind `hva`.
    pub fn missing(
        &self,
        hva: HostVa,
        bytes: u64,
        access: Access,
        found: &mut [PageRegion],
    ) -> Result<usize, Errno> {
        let replaced = if access == Access::Write { PAGE_IS_PFNZERO } else { 0 };
        let mut question = PmScanArg {
            start: hva.raw(),
            end: hva.raw().saturating_add(bytes),
            category_inverted: PAGE_IS_PRESENT,
            category_anyof_mask: PAGE_IS_PRESENT | replaced,
            return_mask: PAGE_IS_PRESENT,
            ..PmScanArg::default()
        };
        let count = self.scan(&mut question, found)?;
        // The kernel scans whole pages, and the range of an IOMMU with smaller ones can end within one.
        found[..count].iter_mut().for_each(|region| region.end = region.end.min(question.end));
        if found.is_empty() || (count > 0 && found[0].start == hva.raw()) || self.page(hva)?.is_some() {
            return Ok(count);
        }
        found[0] = PageRegion::new(question.start, question.end);
        Ok(1)
    }

    /// The kinds of pages that map the `bytes` bytes of present memory at `hva`, up to the first page found that
    /// would fault on `access`.
    ///
    /// Huge pages are counted exactly; the kind of the others is that of the first page.
    pub fn kinds(&self, hva: HostVa, bytes: u64, access: Access) -> Result<Mapped, Errno> {
        let first = self.page(hva)?.unwrap_or(0);
        if first & PAGE_IS_HUGE != 0 && self.run(hva, bytes, PAGE_IS_HUGE)? == bytes {
            return Ok(Mapped { huge: bytes, ..Mapped::default() });
        }
        let (mut huge, mut small) = (0, 0);
        let end = hva.raw().saturating_add(bytes);
        let mut at = hva;
        // Check one page where each huge page could begin: no base page is checked twice.
        while at.raw() < end {
            let next = at.checked_add(HUGE_PAGE - at.raw() % HUGE_PAGE).filter(|next| next.raw() < end);
            let length = next.map_or(end, HostVa::raw) - at.raw();
            let categories = self.page(at)?.unwrap_or(0);
            if faults(categories, access) {
                break;
            }
            *(if categories & PAGE_IS_HUGE != 0 { &mut huge } else { &mut small }) += length;
            let Some(next) = next else { break };
            at = next;
        }
        let file = first & PAGE_IS_FILE != 0;
        let (small_file, small_anonymous) = if file { (small, 0) } else { (0, small) };
        Ok(Mapped { huge, small_anonymous, small_file })
    }

    /// The categories of the page at `hva`; `None` if it is not present.
    fn page(&self, hva: HostVa) -> Result<Option<u64>, Errno> {
        let mut question = PmScanArg {
            start: hva.raw(),
            end: hva.raw().saturating_add(base_page()),
            category_mask: PAGE_IS_PRESENT,
            return_mask: PAGE_IS_HUGE | PAGE_IS_FILE | PAGE_IS_PFNZERO,
            ..PmScanArg::default()
        };
        let mut page = [PageRegion::default()];
        Ok((self.scan(&mut question, &mut page)? > 0).then_some(page[0].categories))
    }

    /// The number of bytes from `hva` on, up to `bytes`, that are present.
    pub fn present(&self, hva: HostVa, bytes: u64) -> Result<u64, Errno> {
        self.run(hva, bytes, PAGE_IS_PRESENT)
    }

    /// The number of bytes from `hva` on, up to `bytes`, in pages of this category: one call.
    fn run(&self, hva: HostVa, bytes: u64, category: u64) -> Result<u64, Errno> {
        let mut question = PmScanArg {
            start: hva.raw(),
            end: hva.raw().saturating_add(bytes),
            category_mask: category,
            return_mask: category,
            ..PmScanArg::default()
        };
        let mut run = [PageRegion::default()];
        let found = self.scan(&mut question, &mut run)?;
        // The kernel scans whole pages.
        let bytes = (run[0].end - run[0].start).min(bytes);
        Ok(if found > 0 && run[0].start == question.start { bytes } else { 0 })
    }

    /// Makes the call; returns the number of elements of `found` that were written.
    fn scan(&self, question: &mut PmScanArg, found: &mut [PageRegion]) -> Result<usize, Errno> {
        question.size = size_of::<PmScanArg>() as u64;
        question.vec = found.as_mut_ptr() as u64;
        question.vec_len = found.len() as u64;
        // SAFETY: `question` contains its own length, `vec` points to `vec_len` writable regions, and both outlive
        // the call. The call only reads the page tables of the scanned range, which does not even have to be mapped.
        let answer =
            unsafe { libc::ioctl(self.file.as_raw_fd(), number(PAGEMAP_SCAN), std::ptr::from_mut(question)) };
        usize::try_from(answer).map_err(|_| Errno::last())
    }
}

/// Whether an access faults although the page is present: a write replaces the shared zero page.
fn faults(categories: u64, access: Access) -> bool {
    access == Access::Write && categories & PAGE_IS_PFNZERO != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_of_this_test_are_there_and_nothing_is_at_zero() {
        let pagemap = Pagemap::open().expect("Linux 6.7 or newer");
        let page = base_page();
        let memory = vec![1u8; 3 * page as usize];
        let inside = HostVa::from_raw((memory.as_ptr() as u64).next_multiple_of(page));
        let mut found = [PageRegion::default(); 2];
        let mut missing = |hva, bytes, access| pagemap.missing(hva, bytes, access, &mut found);
        assert_eq!(missing(inside, 2 * page, Access::Write), Ok(0));
        assert_eq!(missing(HostVa::from_raw(1), page, Access::Read), Err(Errno::EINVAL));
        assert_eq!(missing(HostVa::from_raw(0), 1 << 30, Access::Read), Ok(1));
        assert_eq!((found[0].start, found[0].end), (0, 1 << 30));
        let kinds = pagemap.kinds(inside, 2 * page, Access::Write).unwrap();
        assert_eq!((kinds.huge + kinds.small_anonymous, kinds.small_file), (2 * page, 0));
    }

    /// The pages of an IOMMU can be smaller than those of the kernel.
    #[test]
    fn nothing_after_a_range_that_ends_within_a_page_is_counted() {
        let pagemap = Pagemap::open().expect("Linux 6.7 or newer");
        let (page, flags) = (base_page(), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let bytes = 4 * page as usize;
        let (anywhere, protection) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: without MAP_FIXED a mapping replaces nothing.
        let memory = unsafe { libc::mmap(anywhere, bytes, protection, flags, -1, 0) };
        assert_ne!(memory, libc::MAP_FAILED);
        let start = HostVa::from_raw(memory as u64);
        let part = page + page / 2;
        let mut found = [PageRegion::default(); 2];
        assert_eq!(pagemap.missing(start, part, Access::Write, &mut found), Ok(1));
        assert_eq!(found[0].end - found[0].start, part);
        crate::sys::madvise::populate(start, part, Access::Write).unwrap();
        assert_eq!(pagemap.missing(start, part, Access::Write, &mut found), Ok(0));
        assert_eq!(pagemap.present(start, part), Ok(part));
        // SAFETY: the mapping is this test's, and nothing refers to it.
        assert_eq!(unsafe { libc::munmap(memory, bytes) }, 0);
    }
}
