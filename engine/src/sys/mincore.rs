//! Finds the present pages of a host range without /proc: mincore, which every kernel has.
#![allow(unsafe_code)]

use crate::addr::HostVa;
use crate::error::{Errno, KernelResult};
use crate::sys::page::base_page;

/// Pages of one call. The kernel copies the result in blocks of this many bytes.
const PAGES: usize = 4096;

/// Counts the bytes from `hva` on, up to `bytes`, that are present or, for files, in memory. Stops at the first page
/// that is not.
///
/// Knows less than [`Pagemap`](super::pagemap::Pagemap): not which kind of page it is, and a page that a write would
/// copy or replace counts as present. Of a file that this process may not write to, every page counts.
pub(crate) fn present(hva: HostVa, bytes: u64) -> KernelResult<u64> {
    let page = base_page();
    let mut pages = [0u8; PAGES];
    let mut at = 0;
    while at < bytes {
        let length = (bytes - at).min(PAGES as u64 * page);
        let address = hva.raw().checked_add(at).and_then(|start| usize::try_from(start).ok());
        let address = std::ptr::with_exposed_provenance_mut(address.ok_or(Errno::EINVAL)?);
        // At most the size of the array times the page.
        let length = length as usize;
        // SAFETY: the array has a byte for each page. The call reads page tables only; memory that is not mapped is an
        // error.
        if unsafe { libc::mincore(address, length, pages.as_mut_ptr()) } != 0 {
            return if at > 0 { Ok(at) } else { Err(Errno::last()) };
        }
        let count = (length as u64).div_ceil(page) as usize;
        if let Some(missing) = pages[..count].iter().position(|page| page & 1 == 0) {
            return Ok(at + missing as u64 * page);
        }
        at += length as u64;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_of_this_test_are_there_and_nothing_is_at_zero() {
        let page = base_page();
        let pages = vec![1u8; (PAGES + 3) * page as usize];
        let inside = HostVa::from_raw((pages.as_ptr() as u64).next_multiple_of(page));
        let bytes = (PAGES as u64 + 2) * page;
        assert_eq!(present(inside, bytes), Ok(bytes), "more than one call");
        assert_eq!(present(HostVa::from_raw(0), 4096), Err(Errno::ENOMEM));
        assert_eq!(present(HostVa::from_raw(1), 4096), Err(Errno::EINVAL));
        assert_eq!(present(inside, 0), Ok(0));
    }
}
