//! Memory with contents that are no longer needed, and how to discard it.
#![allow(unsafe_code)]

use crate::addr::HostVa;
use crate::error::Errno;
use crate::sys::page::base_page;

/// The way in which the pages of a [`DiscardRange`] are freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiscardMode {
    /// Frees this process's own pages. The next access reads zeros, or for a private file mapping the contents of the
    /// file.
    Private,
    /// Removes the pages from the memory file (shmem, a memfd, hugetlbfs) that is mapped there, for every user of the
    /// file.
    Shared,
}

/// A range of host memory with contents that its owner no longer needs. Created by [`discard_range`], whose contract
/// holds until this is dropped. So it cannot be copied: a copy would outlive it.
#[derive(Debug)]
pub struct DiscardRange {
    hva: HostVa,
    bytes: u64,
    mode: DiscardMode,
}

/// Declares that the contents of the `bytes` bytes from `address` on are no longer needed. Returns `None` unless
/// these are whole pages, at least one, and do not extend past the end of the address space.
///
/// This call does not change the memory.
///
/// # Safety
///
/// From this call until the value is dropped:
///
/// - **Nothing depends on the contents**: not this program, not the guest that used the memory, and with
///   [`DiscardMode::Shared`] no other process and no program that opens the file later.
/// - **The range is not part of any Rust allocation, stack or static**, and there is no Rust reference to a byte of it.
/// - **It stays mapped in this process as it is**, or is unmapped and not replaced: the contents of another mapping
///   there would be discarded.
pub unsafe fn discard_range(address: u64, bytes: u64, mode: DiscardMode) -> Option<DiscardRange> {
    let page = base_page();
    let whole = [address, bytes].iter().all(|value| value & (page - 1) == 0);
    let hva = HostVa::from_raw(address);
    hva.checked_add(bytes.checked_sub(1)?)?;
    whole.then_some(DiscardRange { hva, bytes, mode })
}

impl DiscardRange {
    /// The first byte.
    pub fn hva(&self) -> HostVa {
        self.hva
    }

    /// Its length in bytes, not 0.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Discards `bytes` bytes from `offset` on, in one call. They must be whole pages inside this memory.
    pub(crate) fn discard(&self, offset: u64, bytes: u64) -> Result<(), Errno> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        // The kernel would round the length up, past the end of the declared range.
        if !inside || bytes & (base_page() - 1) != 0 {
            return Err(Errno::EINVAL);
        }
        let advice = match self.mode {
            DiscardMode::Private => libc::MADV_DONTNEED,
            DiscardMode::Shared => libc::MADV_REMOVE,
        };
        let start = self.hva.checked_add(offset).ok_or(Errno::EINVAL)?;
        let address = usize::try_from(start.raw()).map_err(|_| Errno::EINVAL)?;
        let length = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
        let address = std::ptr::with_exposed_provenance_mut(address);
        // SAFETY: the range lies inside the one for which the caller of `discard_range` guaranteed that nothing
        // depends on its contents, and that no reference or Rust allocation is in it. An unmapped range, or one that
        // cannot be discarded, fails with an error.
        match unsafe { libc::madvise(address, length, advice) } {
            0 => Ok(()),
            _ => Err(Errno::last()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: u64, bytes: u64) -> Option<DiscardRange> {
        // SAFETY: nothing is mapped at these addresses, and the value does not change memory until it is discarded.
        unsafe { discard_range(address, bytes, DiscardMode::Private) }
    }

    #[test]
    fn only_whole_pages_are_accepted() {
        let page = base_page();
        assert!(at(page, page).is_some());
        assert!(at(page + 1, page).is_none());
        assert!(at(page, page - 1).is_none());
        assert!(at(page, 0).is_none());
        assert!(at(page.wrapping_neg(), page).is_some(), "the last page there is");
        assert!(at(page.wrapping_neg(), 2 * page).is_none());
    }

    #[test]
    fn nothing_beyond_what_was_named_is_given_back() {
        let page = base_page();
        // The first pages of the address space are never mapped (vm.mmap_min_addr).
        let memory = at(0, 2 * page).unwrap();
        assert_eq!(memory.discard(0, 2 * page), Err(Errno::ENOMEM));
        for (offset, bytes) in [(page, 2 * page), (0, page + 1), (u64::MAX, page)] {
            assert_eq!(memory.discard(offset, bytes), Err(Errno::EINVAL), "{offset:#x} {bytes:#x}");
        }
    }
}
