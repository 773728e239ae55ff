//! Faults pages in without changing their contents.
#![allow(unsafe_code)]

use crate::addr::HostVa;
use crate::error::Errno;

/// The access that the pages are faulted in for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Read: shared zero pages and page-cache pages are sufficient.
    Read,
    /// Write: private pages are copied and file pages are made dirty, as by a write to each page.
    Write,
}

/// Whether the kernel has the two advices of [`populate`] (Linux 5.14).
pub(crate) fn can_populate() -> bool {
    // An empty range: known advice does nothing, unknown advice is EINVAL.
    populate(HostVa::from_raw(0), 0, Access::Write).is_ok()
}

/// Makes every page of the `bytes` bytes at `hva` present, as if each had been accessed, in one call.
///
/// Stops at the first page that cannot be made present; the pages before it stay present.
pub(crate) fn populate(hva: HostVa, bytes: u64, access: Access) -> Result<(), Errno> {
    let advice = match access {
        Access::Read => libc::MADV_POPULATE_READ,
        Access::Write => libc::MADV_POPULATE_WRITE,
    };
    let length = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    let address = usize::try_from(hva.raw()).map_err(|_| Errno::EINVAL)?;
    let address = std::ptr::with_exposed_provenance_mut(address);
    // SAFETY: the two populate advices only fault pages in. For any address they change no byte of memory and no
    // mapping: memory that is not mapped, or that does not allow the access, fails with an error and not with a
    // signal. So the range has no obligations, and other users of the memory cannot notice the call.
    match unsafe { libc::madvise(address, length, advice) } {
        0 => Ok(()),
        _ => Err(Errno::last()),
    }
}

/// Requests huge pages for later faults in the `bytes` bytes at `hva`.
///
/// An error only means that the kernel has no huge pages, or cannot use them for this memory.
pub(crate) fn prefer_huge_pages(hva: HostVa, bytes: u64) -> Result<(), Errno> {
    let length = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    let address = usize::try_from(hva.raw()).map_err(|_| Errno::EINVAL)?;
    let address = std::ptr::with_exposed_provenance_mut(address);
    // SAFETY: the advice changes how later faults are served, and no byte of memory, for any address: unmapped memory
    // fails with an error. So the range has no obligations.
    match unsafe { libc::madvise(address, length, libc::MADV_HUGEPAGE) } {
        0 => Ok(()),
        _ => Err(Errno::last()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_the_advice() {
        assert!(can_populate());
    }

    #[test]
    fn an_unmapped_range_is_an_error_and_not_a_signal() {
        // The first pages of the address space are never mapped (vm.mmap_min_addr).
        assert_eq!(populate(HostVa::from_raw(0), 0x1000, Access::Write), Err(Errno::ENOMEM));
        assert_eq!(populate(HostVa::from_raw(0), 0x1000, Access::Read), Err(Errno::ENOMEM));
        assert_eq!(populate(HostVa::from_raw(1), 0x1000, Access::Read), Err(Errno::EINVAL));
    }
}
