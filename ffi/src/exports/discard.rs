//! Returning memory to the system.

use std::ffi::c_int;

use vfio_fast_engine::discard_range;

use crate::abi::vfio_fast_memory;
use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::{convert, sized};

/// Returns memory to the system that no device can access any more, on as many threads as a commit uses.
///
/// The contents of the memory are lost. The range stays mapped in this process. This is for a program that is about
/// to exit, or that has ended a guest: the system frees memory on a single thread.
///
/// - vf: a handle
/// - memory: the memory to return; read only during the call
///
/// # Returns
/// 0, a common error, or
/// - -EINVAL: hva or length is not a multiple of the system's page size; length is 0; the range extends past the end
///   of the address space; or the kernel cannot discard such memory (locked memory, a part of a huge page, or with
///   VFIO_FAST_MEMORY_SHARED a mapping that is not of a file)
/// - -EOPNOTSUPP: the file system cannot free a part of a file
/// - -EBUSY: a part of the range is wanted or mapped through this handle at this host address. Mappings through other
///   handles, or at other host addresses of the same memory, are not detected.
/// - -ENOMEM: a part of the range is not mapped in this process
/// - another errno from the kernel
///
/// After an error from the kernel, a part of the memory may have been discarded.
///
/// # Threads
/// Any thread; waits for other calls on the same handle. The call may start threads, which block all signals and end
/// before it returns.
///
/// # Safety
/// See Pointers. Nothing needs the contents of the memory, and nothing else is mapped in the range during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_discard(vf: *mut vfio_fast, memory: *const vfio_fast_memory) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: memory is as this function's contract says.
        let memory = unsafe { sized::read(memory) }?;
        let mode = convert::discard_mode(&memory)?;
        // SAFETY: this function's contract says of the memory what discard_range() demands.
        let range = unsafe { discard_range(memory.hva, memory.length, mode) };
        let range = range.ok_or_else(|| convert::no_pages(&memory))?;
        Ok(handle.engine.discard(&range)?)
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}
