//! Mapping memory again whose pages were replaced.

use std::ffi::c_int;

use vfio_fast_engine::host_va;

use crate::abi::vfio_fast_memory;
use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::{convert, out, sized};

/// Maps memory again whose pages were replaced, for example after a memory error.
///
/// The kernel pins pages, not addresses: if the page at an address is replaced, devices still access the old one. This
/// call unmaps every kernel entry that maps a byte of the memory, at any device address, and maps it again. Unmapping
/// and mapping the region in one transaction does not do this, because the library keeps what is already right. No
/// device can access these entries in between. What is wanted does not change.
///
/// Replace all pages before the first call: an entry can only be mapped if all of its pages can be pinned.
///
/// - vf: the handle
/// - memory: the memory; flags must be 0; read only during the call
/// - remapped: receives the number of bytes that were mapped again. May be NULL.
///
/// # Returns
/// 0, a common error, or
/// - -EBUSY: a transaction is open, of this thread or of another one
/// - -EINVAL: length is 0; the range extends past the end of the address space
/// - any error of vfio_fast_commit(). Nothing is unmapped if a limit would not let the entries be mapped again. After
///   another error, the library tries to map the entries as they were; what cannot be mapped stays wanted (see Failed
///   commits).
///
/// # Threads
/// Any thread; waits for other calls on the same handle. The call may start threads, which block all signals and end
/// before it returns.
///
/// # Safety
/// See Pointers. What vfio_fast_map_region() demands of the memory of a region holds for the new pages.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_remap(
    vf: *mut vfio_fast,
    memory: *const vfio_fast_memory,
    remapped: *mut u64,
) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: memory is as this function's contract says.
        let memory = unsafe { sized::read(memory) }?;
        convert::known("struct vfio_fast_memory: flags", memory.flags, 0)?;
        // SAFETY: the regions that map this memory were declared with the promise that host_va() demands, and no
        // region is declared with this address.
        let hva = unsafe { host_va(memory.hva) };
        let bytes = handle.engine.remap(hva, memory.length)?;
        // SAFETY: remapped is as this function's contract says.
        unsafe { out::write_optional(remapped, bytes) };
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}
