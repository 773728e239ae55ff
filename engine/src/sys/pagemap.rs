//! Finds the present pages of a host range: PAGEMAP_SCAN on /proc/self/pagemap (Linux 6.7).
//!
//! A scan takes two or three nanoseconds per page-table entry, less than a hundredth of the time of faulting a page
//! in, and takes no lock that page faults of other threads wait for.
#![allow(unsafe_code)]

use std::fs::File;
use std::mem::size_of;
use std::os::fd::AsRawFd;

use crate::addr::{BASE_PAGE, HUGE_PAGE, HostVa};
use crate::error::Errno;
use crate::sys::madvise::Access;

/// The page tables of this process.
#[derive(Debug)]
pub(crate) struct Pagemap {
    file: File,
}

/// `struct page_region` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
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

impl Mapped {
    /// The total.
    pub fn bytes(self) -> u64 {
        self.huge + self.small_anonymous + self.small_file
    }
}

impl Pagemap {
    /// `None` if there is no /proc, or the kernel is older: then no page is known to be present.
    pub fn open() -> Option<Self> {
        let pagemap = Self { file: File::open("/proc/self/pagemap").ok()? };
        // Every kernel with this request accepts an empty range.
        pagemap.scan(&mut PmScanArg::default(), &mut []).ok().map(|_| pagemap)
    }

    /// Counts the bytes from `hva` on, up to `bytes`, that can be accessed without a fault, by kind of page.
    ///
    /// A page that a write would have to copy (after a fork) counts as present: the pin copies it. So does a shared
    /// zero page that a write would replace, unless it is found where a huge page could begin: memory that was only
    /// read has zero pages everywhere. Memory without pages of its own (device memory) is never present.
    pub fn present(&self, hva: HostVa, bytes: u64, access: Access) -> Result<Mapped, Errno> {
        // The scan skips device memory and holes, so it finds no missing page there: check that the first page is
        // present.
        match self.page(hva)? {
            Some(categories) if !faults(categories, access) => {}
            _ => return Ok(Mapped::default()),
        }
        // Scanning for the first missing page is several times faster than listing all present ones.
        let mut question = PmScanArg {
            start: hva.raw(),
            end: hva.raw().saturating_add(bytes),
            max_pages: 1,
            category_inverted: PAGE_IS_PRESENT,
            category_mask: PAGE_IS_PRESENT,
            return_mask: PAGE_IS_PRESENT,
            ..PmScanArg::default()
        };
        let mut missing = [PageRegion::default()];
        let found = self.scan(&mut question, &mut missing)?;
        let present = if found == 0 { bytes } else { missing[0].start - hva.raw() };
        self.kinds(hva, present, access)
    }

    /// The kinds of pages that map the `bytes` bytes of present memory at `hva`, up to the first page found that
    /// would fault on `access`.
    ///
    /// Huge pages are counted exactly; the kind of the others is that of the first page.
    pub fn kinds(&self, hva: HostVa, bytes: u64, access: Access) -> Result<Mapped, Errno> {
        let first = self.page(hva)?.unwrap_or(0);
        if first & PAGE_IS_HUGE != 0 && self.all_huge(hva, bytes)? {
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
            end: hva.raw().saturating_add(BASE_PAGE),
            category_mask: PAGE_IS_PRESENT,
            return_mask: PAGE_IS_HUGE | PAGE_IS_FILE | PAGE_IS_PFNZERO,
            ..PmScanArg::default()
        };
        let mut page = [PageRegion::default()];
        Ok((self.scan(&mut question, &mut page)? > 0).then_some(page[0].categories))
    }

    /// Whether huge pages map every byte: one call, whatever their number.
    fn all_huge(&self, hva: HostVa, bytes: u64) -> Result<bool, Errno> {
        let mut question = PmScanArg {
            start: hva.raw(),
            end: hva.raw().saturating_add(bytes),
            category_mask: PAGE_IS_HUGE,
            return_mask: PAGE_IS_HUGE,
            ..PmScanArg::default()
        };
        let mut run = [PageRegion::default()];
        let found = self.scan(&mut question, &mut run)?;
        Ok(found > 0 && run[0].start == question.start && run[0].end >= question.end)
    }

    /// Makes the call; returns the number of elements of `found` that were written.
    fn scan(&self, question: &mut PmScanArg, found: &mut [PageRegion]) -> Result<usize, Errno> {
        question.size = size_of::<PmScanArg>() as u64;
        question.vec = found.as_mut_ptr() as u64;
        question.vec_len = found.len() as u64;
        // SAFETY: `question` contains its own length, `vec` points to `vec_len` writable regions, and both outlive
        // the call. The call only reads the page tables of the scanned range, which does not even have to be mapped.
        let answer =
            unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, std::ptr::from_mut(question)) };
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
        let page = vec![1u8; 3 * 4096];
        let inside = HostVa::from_raw((page.as_ptr() as u64).next_multiple_of(4096));
        let kinds = pagemap.present(inside, 8192, Access::Write).unwrap();
        assert_eq!((kinds.huge + kinds.small_anonymous, kinds.small_file), (8192, 0));
        assert_eq!(pagemap.present(HostVa::from_raw(0), 1 << 30, Access::Read), Ok(Mapped::default()));
        assert_eq!(pagemap.present(HostVa::from_raw(1), 4096, Access::Read), Err(Errno::EINVAL));
    }
}
