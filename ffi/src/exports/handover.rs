//! Handing the kernel entries over to another process.

use std::ffi::c_int;

use crate::abi::{vfio_fast_entry, vfio_fast_outcome};
use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::sized::Output;
use crate::{array, convert, out};

/// Suspends a handle, so that another process can take its kernel entries over. Devices keep their access to all of
/// them, without a gap.
///
/// The two processes do this:
///   - The old process calls this function, then vfio_fast_get_entries(), and sends the list and the descriptors.
///   - The new process opens a handle on the same container, begins a transaction, maps the same regions at its own
///     host addresses, and calls vfio_fast_adopt() with the list.
///   - If that fails, the old process calls vfio_fast_resume(). Otherwise it closes its handle or ends.
///
/// Both must map the same pages of memory: shared memory, of which one process passes the descriptor to the other. With
/// iommufd, the new process makes IOMMU_IOAS_CHANGE_PROCESS before it adopts. The kernel refuses that unless every entry
/// was mapped by file (VFIO_FAST_REGION_FD).
///
/// While a handle is suspended, calls that would change something return -EBUSY, and vfio_fast_close() unmaps nothing.
///
/// - vf: the handle
///
/// # Returns
/// 0, a common error, or
/// - -EBUSY: a transaction is open, of this thread or of another one; memory is left to a job in the background
///   (vfio_fast_wait()); dirty pages are tracked; the handle is suspended already; the container has a mediated device
/// - -EOPNOTSUPP: the container cannot do this. It takes type1 of Linux 5.12 or later (VFIO_UPDATE_VADDR), or iommufd.
/// - another errno of the kernel
///
/// # Threads
/// Any thread; waits for other calls on the same handle.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_suspend(vf: *mut vfio_fast) -> c_int {
    let body = |handle: &vfio_fast| Ok(handle.engine.suspend()?);
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Takes the kernel entries of a suspended handle back. No other process may use them any more.
///
/// If this fails, the handle stays suspended, and the call can be made again.
///
/// - vf: the handle
///
/// # Returns
/// 0, a common error, or
/// - -EINVAL: the handle is not suspended
/// - -ENOENT, -EINVAL: the container does not have all of the entries any more
/// - -ENOMEM: the locked-memory limit is too low
/// - another errno of the kernel
///
/// # Threads
/// Any thread; waits for other calls on the same handle.
///
/// # Safety
/// See Pointers. What vfio_fast_map_region() demands of the memory of a region holds again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_resume(vf: *mut vfio_fast) -> c_int {
    let body = |handle: &vfio_fast| Ok(handle.engine.resume()?);
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Lists the kernel entries of a handle, ascending. Works on a suspended handle.
///
/// - vf: the handle
/// - entries: receives the entries. NULL: only their number is returned.
/// - count: points to the number of elements of entries, and receives the number of kernel entries
///
/// # Returns
/// 0, a common error, or
/// - -EMSGSIZE: there are more kernel entries than entries has elements; nothing was written
/// - -ENOMEM: there is too little memory for the list of them
///
/// # Threads
/// Any thread; waits for other calls on the same handle.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_get_entries(
    vf: *mut vfio_fast,
    entries: *mut vfio_fast_entry,
    count: *mut u64,
) -> c_int {
    let body = |handle: &vfio_fast| {
        let held = handle.engine.list_entries(|entry| convert::entry_out(entry.range, entry.perm))?;
        // SAFETY: entries and count are as this function's contract says.
        unsafe { out::write_list(entries, count, &held, "entries") }
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Commits the open transaction in a container that has kernel entries already, which another process has handed over
/// (vfio_fast_suspend()).
///
/// The handle must be the first one of this process on the container, and must not have mapped anything yet. An entry
/// that maps what the transaction wants is kept as it is: it gets its host address in this process, and devices keep
/// their access. Other entries are unmapped, and what is missing is mapped, as in vfio_fast_commit().
///
/// If this fails, the handle has nothing mapped and nothing wanted, the entries can be resumed by the old process, and
/// the transaction is closed. Only entries that the transaction does not want can be gone. If a struct or array is not
/// valid, nothing is done and the transaction stays open.
///
/// - vf: the handle
/// - entries: the entries, in any order; read only during the call
/// - count: number of elements of entries
/// - outcome: receives what the commit did; kept_entries has all entries that were kept. May be NULL.
///
/// # Returns
/// 0, a common error, or
/// - -EBUSY: another thread has a transaction open; the handle has mapped something already
/// - -EINVAL: no transaction is open; two entries overlap; the container has no such entry, or nobody has handed it
///   over
/// - -ENOENT: the container has no such entry
/// - -EOPNOTSUPP: the container cannot do this (see vfio_fast_suspend()); a flag of an entry is unknown
/// - any error of vfio_fast_commit()
///
/// # Threads
/// Any thread; waits for other calls on the same handle. The call may start threads, which block all signals and end
/// before it returns.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_adopt(
    vf: *mut vfio_fast,
    entries: *const vfio_fast_entry,
    count: u64,
    outcome: *mut vfio_fast_outcome,
) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: outcome is as this function's contract says, and only this call uses it until it returns.
        let output = unsafe { Output::optional(outcome) }?;
        // SAFETY: entries is as this function's contract says.
        let entries = unsafe { array::entries(entries, count, "entries") }?;
        let outcome = handle.engine.adopt(convert::entries_in(entries)?)?;
        if let Some(output) = output {
            output.write(&convert::outcome(&outcome));
        }
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}
