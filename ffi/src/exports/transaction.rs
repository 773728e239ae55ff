//! Transactions: begin, commit, abort.

use std::ffi::c_int;

use crate::abi::vfio_fast_outcome;
use crate::convert;
use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::sized::Output;

/// Opens a transaction. Until vfio_fast_commit() or vfio_fast_abort(), vfio_fast_map_region() and vfio_fast_unmap() only
/// change what is wanted and answer errors of their arguments; nothing reaches the kernel. The transaction belongs to
/// the handle, not to the thread.
///
/// - vf: the handle.
///
/// # Returns
/// 0, or
/// - -EINVAL: vf is NULL
/// - -EBUSY: a transaction is open already
/// - -EDEADLK, -ENOTRECOVERABLE: see the top of this file
///
/// # Threads
/// Any; waits for a running call on the same handle.
///
/// # Safety
/// vf is NULL or came from vfio_fast_open() and is not closed before this call has returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_begin(vf: *mut vfio_fast) -> c_int {
    let body = |handle: &vfio_fast| Ok(handle.engine.begin()?);
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Makes the kernel hold what is wanted: checks the limits, faults memory in, unmaps, maps, and leaves alone what is
/// right already. When it has returned 0, no device can reach memory that is not wanted.
///
/// If it fails, everything the transaction added is taken back and is no longer wanted, what the transaction unmapped
/// stays unmapped, what was wanted before and was not unmapped stays mapped; the errno is that of the first failure.
/// The transaction is closed either way, unless outcome itself was refused (-EINVAL, -E2BIG): then nothing was done and
/// it is still open. If taking back fails too, the handle is poisoned.
///
/// A device region that cannot be mapped is no failure: outcome tells, and a message at VFIO_FAST_LOG_WARN.
///
/// - vf: the handle.
/// - outcome: receives what was done. May be NULL. Written only on success.
///
/// # Returns
/// 0, or
/// - -EINVAL: vf is NULL; no transaction is open; outcome is too short; RAM lies outside the device addresses the IOMMU
///   can translate
/// - -E2BIG: outcome is too long (the size rule)
/// - -ENOMEM: the locked-memory limit does not suffice; vfio_fast_last_error() names what is needed, what is allowed and
///   what to raise; or the kernel ran out of memory
/// - -ENOSPC: the IOMMU has too few entries left (dma_avail)
/// - -EIO: the kernel unmapped another number of bytes than were mapped: somebody else changed the container
/// - another errno the kernel's map or unmap call gave, such as -EFAULT
/// - -EDEADLK, -ENOTRECOVERABLE: see the top of this file
///
/// # Threads
/// Any; waits for a running call on the same handle. It may start threads that end before it returns; they block all
/// signals.
///
/// # Safety
/// vf as for vfio_fast_begin(); outcome is NULL or points to as many bytes as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_commit(vf: *mut vfio_fast, outcome: *mut vfio_fast_outcome) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: outcome is as this function's contract says, and only this call uses it until it returns.
        let output = unsafe { Output::optional(outcome) }?;
        let outcome = handle.engine.commit()?;
        if let Some(output) = output {
            output.write(&convert::outcome(&outcome));
        }
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Forgets the open transaction: what is wanted is what was wanted before vfio_fast_begin(). The kernel is not called.
///
/// - vf: the handle.
///
/// # Returns
/// 0, or
/// - -EINVAL: vf is NULL; no transaction is open
/// - -EDEADLK, -ENOTRECOVERABLE: see the top of this file
///
/// # Threads
/// Any; waits for a running call on the same handle.
///
/// # Safety
/// vf as for vfio_fast_begin().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_abort(vf: *mut vfio_fast) -> c_int {
    let body = |handle: &vfio_fast| Ok(handle.engine.abort()?);
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}
