//! Device memory that the kernel does not map.

use crate::addr::IovaRange;
use crate::error::Errno;
use crate::reconcile::table::Entry;
use crate::region::Kind;

/// A device region the kernel refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The range of the region.
    pub region: IovaRange,
    /// What the caller declared it to be.
    pub declared: Kind,
    /// The entry that could not be mapped.
    pub entry: Entry,
    /// The kernel's error.
    pub errno: Errno,
}

/// Whether `errno` of a map call says of device memory that it cannot be mapped: there is no peer-to-peer DMA to it,
/// and everything else works. Any other errno would be the same for RAM, and says that something is wrong: another user
/// has mapped there (EEXIST), memory or descriptors ran out (ENOMEM, EMFILE), the IOAS is gone (ENOENT), a descriptor
/// is not open (EBADF), the range is in use (EBUSY), the process is being killed (EINTR).
pub(super) fn is_no_peer_to_peer(errno: Errno) -> bool {
    match errno {
        // type1: the memory is not a BAR, or the BAR cannot be accessed now (decoding is off, D3). iommufd: device
        // memory has no pages to pin.
        Errno::EFAULT => true,
        // The IOMMU does not translate these addresses: BARs can lie above all memory, and are not checked before. Also
        // of the export of a BAR as a dma-buf: a part of it may not be mapped.
        Errno::EINVAL => true,
        // iommufd: the dma-buf is not one range, or not of a VFIO device.
        Errno::EOPNOTSUPP => true,
        // The export: the kernel or the device's driver has none. Or the kernel maps no files.
        Errno::ENOTTY => true,
        // iommufd: the dma-buf is revoked, because decoding is off.
        Errno::ENODEV => true,
        // The export is a call of its own, which a sandbox may forbid. If it forbids map calls too, those for RAM fail.
        Errno::EPERM | Errno::EACCES => true,
        // type1 has no entry left. RAM has its entries by now, so the commit need not fail.
        Errno::ENOSPC => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_for_ram_too_is_an_error() {
        let refusals = [
            libc::EFAULT,
            libc::EINVAL,
            libc::EOPNOTSUPP,
            libc::ENOTTY,
            libc::ENODEV,
            libc::EPERM,
            libc::EACCES,
            libc::ENOSPC,
        ];
        for number in 1..200 {
            assert_eq!(is_no_peer_to_peer(Errno(number)), refusals.contains(&number), "{number}");
        }
    }
}
