//! Which pages of a host range are present: PAGEMAP_SCAN on /proc/self/pagemap (Linux 6.7).
//!
//! A look takes two or three nanoseconds per page-table entry, less than a hundredth of what faulting a page in takes,
//! and no lock that faults of other threads wait for.
#![allow(unsafe_code)]

use std::fs::File;
use std::mem::size_of;
use std::os::fd::AsRawFd;

use crate::addr::{BASE_PAGE, HUGE_PAGE, HostVa};
use crate::error::Errno;
use crate::sys::madvise::Access;

/// The process's own page tables, to be asked about.
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

/// Present bytes, by what maps them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Mapped {
    /// In huge pages, of THP or hugetlbfs.
    pub huge: u64,
    /// In base pages of anonymous memory.
    pub small_anonymous: u64,
    /// In base pages of files: shmem, memfd and ordinary ones.
    pub small_file: u64,
}

impl Mapped {
    /// All of them.
    pub fn bytes(self) -> u64 {
        self.huge + self.small_anonymous + self.small_file
    }
}

impl Pagemap {
    /// `None` where there is no /proc, or the kernel is older: then nothing is known of any page.
    pub fn open() -> Option<Self> {
        let pagemap = Self { file: File::open("/proc/self/pagemap").ok()? };
        // Every kernel that has the request accepts an empty range.
        pagemap.scan(&mut PmScanArg::default(), &mut []).ok().map(|_| pagemap)
    }

    /// How many bytes from `hva` on can be accessed without a fault, at most `bytes`, and what maps them.
    ///
    /// What a write would have to copy (after a fork) is taken for present: the pin will see to it. So is a shared zero
    /// page that a write would replace, unless it is met where a huge page could begin: memory that was only read is so
    /// all over. Memory without pages of its own (device memory) is never present.
    pub fn present(&self, hva: HostVa, bytes: u64, access: Access) -> Result<Mapped, Errno> {
        // What the kernel passes over, device memory and holes, has no missing page either: one has to be seen.
        match self.page(hva)? {
            Some(categories) if !faults(categories, access) => {}
            _ => return Ok(Mapped::default()),
        }
        // To ask for the first missing page is several times faster than to list all present ones.
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

    /// What kinds of pages map `bytes` bytes of present memory at `hva`, up to the first page seen that `access` would
    /// fault.
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
        // One look at each place where a huge page could begin: no base page is asked about twice.
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

    /// Whether huge pages map every byte: one question, however many there are.
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

    /// Makes the call; returns how many of `found` were written.
    fn scan(&self, question: &mut PmScanArg, found: &mut [PageRegion]) -> Result<usize, Errno> {
        question.size = size_of::<PmScanArg>() as u64;
        question.vec = found.as_mut_ptr() as u64;
        question.vec_len = found.len() as u64;
        // SAFETY: `question` says its own length, `vec` points to `vec_len` regions that may be written, and both live
        // through the call. The scanned range is only looked at, in the page tables, and need not even be mapped.
        let answer =
            unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, std::ptr::from_mut(question)) };
        usize::try_from(answer).map_err(|_| Errno::last())
    }
}

/// Whether an access faults though the page is present: a write replaces the shared zero page.
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
