//! Faulting pages in, without touching what they hold.
#![allow(unsafe_code)]

use crate::addr::HostVa;
use crate::error::Errno;

/// What is about to be done with the pages, which decides how they are faulted in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Read only: shared zero pages and page-cache pages will do.
    Read,
    /// Written: private copies are broken off and file pages are made dirty, as a write of each page would.
    Write,
}

/// Makes every page of `bytes` bytes at `hva` present, as if each had been accessed, in one call.
///
/// Stops at the first page that cannot be made present; those before it stay so.
pub(crate) fn populate(hva: HostVa, bytes: u64, access: Access) -> Result<(), Errno> {
    let advice = match access {
        Access::Read => libc::MADV_POPULATE_READ,
        Access::Write => libc::MADV_POPULATE_WRITE,
    };
    let length = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    let address = usize::try_from(hva.raw()).map_err(|_| Errno::EINVAL)?;
    let address = std::ptr::with_exposed_provenance_mut(address);
    // SAFETY: the two populate advices only fault pages in. They change no byte of memory and no mapping, for any
    // address: what is not mapped, or may not be accessed so, fails with an error and not with a signal. So there
    // is no obligation on the range, and other users of this memory cannot see that the call was made.
    match unsafe { libc::madvise(address, length, advice) } {
        0 => Ok(()),
        _ => Err(Errno::last()),
    }
}

/// Asks for huge pages where `bytes` bytes at `hva` are faulted in from now on.
///
/// An error only means that the kernel has no huge pages, or that this memory cannot have them.
pub(crate) fn prefer_huge_pages(hva: HostVa, bytes: u64) -> Result<(), Errno> {
    let length = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    let address = usize::try_from(hva.raw()).map_err(|_| Errno::EINVAL)?;
    let address = std::ptr::with_exposed_provenance_mut(address);
    // SAFETY: the advice changes how faults to come are served and no byte of memory, for any address: what is not
    // mapped fails with an error. So there is no obligation on the range.
    match unsafe { libc::madvise(address, length, libc::MADV_HUGEPAGE) } {
        0 => Ok(()),
        _ => Err(Errno::last()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unmapped_range_is_an_error_and_not_a_signal() {
        // The first pages of the address space are never mapped (vm.mmap_min_addr).
        assert_eq!(populate(HostVa::from_raw(0), 0x1000, Access::Write), Err(Errno::ENOMEM));
        assert_eq!(populate(HostVa::from_raw(0), 0x1000, Access::Read), Err(Errno::ENOMEM));
        assert_eq!(populate(HostVa::from_raw(1), 0x1000, Access::Read), Err(Errno::EINVAL));
    }
}
