//! What is behind a host range already: PAGEMAP_SCAN on /proc/self/pagemap (Linux 6.7).
//!
//! A look takes a few nanoseconds per page-table entry, a hundredth of what faulting a page in takes, and no lock that
//! faults of other threads wait for.
#![allow(unsafe_code)]

use std::fs::File;
use std::mem::size_of;
use std::os::fd::AsRawFd;

use crate::addr::HostVa;
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
        // An empty range is a question every kernel that knows the request answers.
        pagemap.scan(&mut PmScanArg::default(), &mut []).ok().map(|_| pagemap)
    }

    /// How the pages from `hva` on are mapped, up to the first of which `access` would fault; at most `bytes` bytes.
    ///
    /// For a write a shared zero page has to be replaced. What a write would have to copy (after a fork) is taken for
    /// present: the pin will see to it. Memory without pages of its own (device memory) is passed over by the kernel and so
    /// never present.
    pub fn present(&self, hva: HostVa, bytes: u64, access: Access) -> Result<Mapped, Errno> {
        let end = hva.raw().saturating_add(bytes);
        let mut mapped = Mapped::default();
        let mut found = [PageRegion::default(); 64];
        let mut next = hva.raw();
        while next < end {
            let mut question = PmScanArg {
                start: next,
                end,
                category_mask: PAGE_IS_PRESENT,
                return_mask: PAGE_IS_HUGE | PAGE_IS_FILE | PAGE_IS_PFNZERO,
                ..PmScanArg::default()
            };
            let regions = self.scan(&mut question, &mut found)?;
            for region in &found[..regions] {
                let faults = access == Access::Write && region.categories & PAGE_IS_PFNZERO != 0;
                if region.start != next || faults {
                    return Ok(mapped);
                }
                next = region.end;
                *match region.categories {
                    categories if categories & PAGE_IS_HUGE != 0 => &mut mapped.huge,
                    categories if categories & PAGE_IS_FILE != 0 => &mut mapped.small_file,
                    _ => &mut mapped.small_anonymous,
                } += region.end - region.start;
            }
            if regions < found.len() {
                return Ok(mapped);
            }
        }
        Ok(mapped)
    }

    /// Asks; answers how many of `found` were written.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_of_this_test_are_there_and_nothing_is_at_zero() {
        let pagemap = Pagemap::open().expect("Linux 6.7 or newer");
        let page = vec![1u8; 3 * 4096];
        let inside = HostVa::from_raw((page.as_ptr() as u64).next_multiple_of(4096));
        assert_eq!(pagemap.present(inside, 8192, Access::Write).map(Mapped::bytes), Ok(8192));
        assert_eq!(pagemap.present(HostVa::from_raw(0), 1 << 30, Access::Read), Ok(Mapped::default()));
        assert_eq!(pagemap.present(HostVa::from_raw(1), 4096, Access::Read), Err(Errno::EINVAL));
    }
}
