//! Transactions: begin, check, commit, abort.

use std::ffi::c_int;

use crate::abi::vfio_fast_outcome;
use crate::convert;
use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::sized::Output;

/// Opens a transaction of the calling thread.
///
/// Until this thread calls vfio_fast_commit() or vfio_fast_abort(), its calls that map and unmap only check their
/// arguments and change which regions are wanted; they make no map or unmap call. Other threads cannot take part: their
/// calls that would change something return -EBUSY. If the thread ends first, the handle can only be read and closed.
///
/// - vf: the handle
///
/// # Returns
/// 0, a common error, or
/// - -EBUSY: a transaction is already open, of this thread or of another one
///
/// # Threads
/// Any thread; waits for other calls on the same handle.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_begin(vf: *mut vfio_fast) -> c_int {
    let body = |handle: &vfio_fast| Ok(handle.engine.begin()?);
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Executes the open transaction: makes the mappings in the kernel match the wanted regions.
///
/// It checks the limits, faults memory in, unmaps and maps. It leaves kernel entries that are already right in place.
/// After it has returned 0, no device can access memory that is not wanted, except what an earlier call could not unmap
/// and this one did not touch (leftover_entries in struct vfio_fast_info).
///
/// On failure, the commit is rolled back: what holds then is described under Failed commits. The call returns the errno
/// of the first failure, except where wanted memory is not mapped any more, and the transaction is closed. If outcome is
/// not valid (-EINVAL, -E2BIG), nothing is done and the transaction stays open.
///
/// A device region that cannot be mapped does not make the commit fail (VFIO_FAST_REGION_DEVICE says which errnos mean
/// this). It is reported in outcome and by a message at VFIO_FAST_LOG_WARN.
///
/// - vf: the handle
/// - outcome: receives what the commit did. May be NULL.
///
/// # Returns
/// 0, a common error, or
/// - -EBUSY: another thread has a transaction open
/// - -EINVAL: no transaction is open; RAM lies outside the device addresses that the IOMMU can translate
/// - -ENOMEM: the locked-memory limit is too low (vfio_fast_last_error() says what is needed, what is allowed and
///   what to raise), or the kernel ran out of memory
/// - -ENOSPC: the container has too few kernel entries left (dma_avail), for RAM that the transaction adds or for the rest
///   of an entry that it unmaps in part
/// - -EIO: the kernel did not unmap as many bytes as were mapped: something else changed the container
/// - another errno from a map or unmap call of the kernel, such as -EFAULT
///
/// # Threads
/// Any thread; waits for other calls on the same handle. The call may start threads, which block all signals and end
/// before it returns.
///
/// # Safety
/// See Pointers.
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

/// Checks the open transaction against every limit that can be known, and changes nothing.
///
/// A program can refuse a change before it happens: open a transaction, map what the change would map, call this, and
/// call vfio_fast_abort(). The transaction stays open in any case. A later commit can still fail: limits change, other
/// processes use them too, and some only the kernel knows.
///
/// It checks what vfio_fast_commit() checks. In addition it checks RLIMIT_MEMLOCK however little is mapped, and whether
/// the kernel pins the pages of the file system behind shared memory.
///
/// - vf: the handle
///
/// # Returns
/// 0, a common error, or
/// - -EBUSY: another thread has a transaction open
/// - -EINVAL: no transaction is open; RAM lies outside the device addresses that the IOMMU can translate
/// - -ENOMEM: the locked-memory limit is too low
/// - -ENOSPC: the container has too few kernel entries left for RAM (dma_avail)
/// - -EFAULT: the file system behind shared memory has too little space left, or the kernel does not pin its pages
///
/// # Threads
/// Any thread; waits for other calls on the same handle.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_check(vf: *mut vfio_fast) -> c_int {
    let body = |handle: &vfio_fast| Ok(handle.engine.check_limits()?);
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Discards the open transaction: the wanted regions are again those from before vfio_fast_begin(). Makes no map or
/// unmap call.
///
/// - vf: the handle
///
/// # Returns
/// 0, a common error, or
/// - -EBUSY: another thread has a transaction open
/// - -EINVAL: no transaction is open
///
/// # Threads
/// Any thread; waits for other calls on the same handle.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_abort(vf: *mut vfio_fast) -> c_int {
    let body = |handle: &vfio_fast| Ok(handle.engine.abort()?);
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}
