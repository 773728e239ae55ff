//! Where host addresses enter the engine.
#![allow(unsafe_code)]

use crate::addr::HostVa;

/// Vouches for the memory from `address` on, so that it may be mapped for a device.
///
/// This is the engine's whole memory-safety contract. An IOMMU lets a device read and write the pages of a mapping at
/// any moment, from outside the program, with no regard to what any language believes about them; no check at run time
/// can find out whether that is acceptable. So the code that names a host address vouches for it, once, here, and
/// everything built on the resulting [`HostVa`] is safe code.
///
/// The address itself is not touched by this call, and need not be mapped at all if no region is ever declared with it.
///
/// # Safety
///
/// Take the address range of every region declared with this address, or with one derived from it by
/// [`HostVa::checked_add`]. From the moment such a region is declared, and until the commit that unmapped the region
/// (or the engine's close) has returned success:
///
/// - **The whole range stays mapped in this process**, to the same memory: it is not unmapped, not replaced by another
///   mmap or mremap, not discarded (MADV_DONTNEED, MADV_REMOVE, a truncated or punched file). The kernel pins pages,
///   not addresses: replace the memory and the device keeps using the old pages while the program sees new ones.
/// - **There is no Rust reference to any byte of it** (`&`, `&mut`, a slice, a `Box`): a device that writes what a
///   reference points to breaks the compiler's assumptions, whether or not the reference is used. Raw pointers
///   with volatile or atomic accesses, foreign code, and the guest that owns the memory are fine. For a region that is
///   not writable for the device, shared references are fine as long as nothing else writes.
/// - **The range is not part of any Rust allocation, stack or static** for which the above does not hold.
/// - **The device may see all of it.** Every byte of the range, up to the page edges, can be read by the device (and
///   overwritten, if the region is writable), and by anyone who controls the device.
///
/// If a commit or close returns an error, or the engine is poisoned, the device may still access the memory: then the
/// contract holds until the container itself is closed.
///
/// Faulting the memory in (which commits do before they map) adds nothing to these obligations: it changes no byte.
pub const unsafe fn host_va(address: u64) -> HostVa {
    HostVa::from_raw(address)
}
