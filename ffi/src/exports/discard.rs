//! Returning memory to the system.

use std::ffi::c_int;

use vfio_fast_engine::discard_range;

use crate::abi::vfio_fast_memory;
use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::{convert, sized};

/// Gives memory that no device reaches any more back to the system, on as many threads as a commit uses: what it held is
/// lost. It stays mapped in this process, and is empty. For a program that ends, or that is done with a guest: the system
/// frees memory on one thread.
///
/// - vf: a handle.
/// - memory: what to give back. Only read during the call.
///
/// # Returns
/// 0, or
/// - -EINVAL: a pointer is NULL; the struct is too short; hva or length is not a multiple of the system's page; length is
///   0; the memory reaches past the end of the address space; or the kernel does not take such memory back (locked
///   memory, a part of a huge page, a file that has none of it)
/// - -E2BIG: the struct is too long (the size rule)
/// - -EOPNOTSUPP: unknown flags; or the file cannot give a part of it back
/// - -EBUSY: a part of the memory is wanted or mapped through this handle, at this host address. What other handles map, or
///   this one at another host address of the same memory, is not seen
/// - -ENOMEM: a part of the range is not mapped in this process
/// - another errno the kernel gave. After any but those of arguments and -EBUSY, a part of the memory may be empty
/// - -EDEADLK, -ENOTRECOVERABLE: see the top of this file
///
/// # Threads
/// Any; waits for a running call on the same handle. It may start threads that end before it returns; they block all
/// signals.
///
/// # Safety
/// vf as for vfio_fast_begin(); memory is NULL or points to as many bytes as its size says. Nothing needs what the memory
/// it names holds, and nothing else is mapped there meanwhile.
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
