//! Commits that map in the background.

use std::ffi::c_int;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use crate::abi::{VFIO_FAST_CANCEL_UNMAP, vfio_fast_outcome, vfio_fast_progress};
use crate::convert;
use crate::failure::Failure;
use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::out;
use crate::sized::Output;

/// Like vfio_fast_commit(), but leaves what is to be mapped to a job in the background.
///
/// When it returns 0, the limits were checked, what is no longer wanted is unmapped, and what was mapped before and is
/// still wanted is mapped. The rest is left to the job: a thread of the library faults it in and maps it. The job uses
/// as many threads as a commit, except that it leaves one CPU to the program until vfio_fast_wait() is called. No device
/// can access a region before the job has mapped it; vfio_fast_wait() and vfio_fast_completion_fd() say when. The memory
/// must stay in place as for any other region.
///
/// An example: a program that starts while its memory is mapped.
///
/// ```c
/// ret = vfio_fast_begin(vf);
/// // vfio_fast_map_region() for each region
/// ret = ret < 0 ? ret : vfio_fast_commit_background(vf, NULL);
/// // Everything that needs no DMA: load firmware, set up the device
/// ret = ret < 0 ? ret : vfio_fast_wait(vf, 0, 0, UINT64_MAX);
/// if (ret == 0) {
///     // now the device may be told to access memory
/// }
/// ```
///
/// While a job works, every function can be called. One that has to wait for commits pauses the job, which takes as long
/// as one entry of at most 128 MiB for each thread (or a page of the memory, if that is larger), and the job goes on
/// afterwards; it does not work while a transaction is open. vfio_fast_commit() and calls outside transactions have
/// mapped what they add when they return. What is unmapped is not mapped or accessed afterwards. Limits are checked with
/// what the job has still to map. If a job runs already, it takes over what this commit adds.
///
/// If the job fails, it ends: what it has mapped stays, and vfio_fast_wait() returns the error. The next
/// vfio_fast_commit_background() tries the rest again, whatever it adds; vfio_fast_cancel() gives it up.
///
/// - vf: the handle
/// - outcome: receives what the commit did before it returned. May be NULL.
///
/// # Returns
/// 0, a common error, or any error of vfio_fast_commit() and vfio_fast_check()
///
/// # Threads
/// Any thread; waits for other calls on the same handle. The call starts a thread that ends with the job and blocks all
/// signals. If it cannot be started, this call maps everything before it returns.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_commit_background(
    vf: *mut vfio_fast,
    outcome: *mut vfio_fast_outcome,
) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: outcome is as this function's contract says, and only this call uses it until it returns.
        let output = unsafe { Output::optional(outcome) }?;
        let outcome = Arc::clone(&handle.engine).commit_background()?;
        if let Some(output) = output {
            output.write(&convert::outcome(&outcome));
        }
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Waits until the job in the background has mapped a range, or everything.
///
/// If something is left, the job uses as many threads as a commit from then on, also if the timeout is 0. A program that
/// only shows how far the job is calls vfio_fast_get_progress().
///
/// - vf: the handle
/// - iova, length: the range; it need not be aligned. If length is 0, everything.
/// - timeout_ns: maximum time to wait in nanoseconds. 0: does not wait. UINT64_MAX: no limit.
///
/// # Returns
/// 0: nothing in the range is left to the job, or there is no job; for everything, the job's threads have ended. Or a
/// common error, or
/// - -ETIMEDOUT: something is left
/// - -EINVAL: the range extends past the end of the address space
/// - -EBUSY: the calling thread has a transaction open, in which the job does not work
/// - the error of the job, if it has failed and something in the range is left: any error of vfio_fast_commit(). The call
///   returns it as often as it is made, with the same message.
///
/// # Threads
/// Any thread. Other calls do not wait for this one.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_wait(
    vf: *mut vfio_fast,
    iova: u64,
    length: u64,
    timeout_ns: u64,
) -> c_int {
    let body = |handle: &vfio_fast| {
        let range = (length != 0).then(|| convert::iova_range(iova, length)).transpose()?;
        let timeout = (timeout_ns != u64::MAX).then(|| Duration::from_nanos(timeout_ns));
        match handle.engine.wait(range, timeout)? {
            true => Ok(()),
            false => {
                let text = "The job in the background has not mapped this yet".to_owned();
                Err(Failure::check(libc::ETIMEDOUT, text))
            }
        }
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Returns how far the job in the background is. Works on a poisoned handle.
///
/// - vf: the handle
/// - progress: receives the numbers
///
/// # Returns
/// 0, or a common error
///
/// # Threads
/// Any thread; never waits.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_get_progress(
    vf: *mut vfio_fast,
    progress: *mut vfio_fast_progress,
) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: progress is as this function's contract says, and only this call uses it until it returns.
        let output = unsafe { Output::new(progress) }?;
        output.write(&convert::progress(&handle.engine.progress()));
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Returns a file descriptor for the loop that a program waits in: it is readable from the end of a job, however that
/// ends, until it is read (8 bytes, as of an eventfd) or the next job begins.
///
/// - vf: the handle, which owns the descriptor and closes it with itself
/// - fd: receives the descriptor; it does not block and is closed on exec
///
/// # Returns
/// 0, a common error, or
/// - -EINVAL: fd is NULL
/// - -EMFILE, -ENFILE or -ENOMEM from the kernel
///
/// # Threads
/// Any thread; waits for other calls on the same handle, but for no commit and no job.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_completion_fd(vf: *mut vfio_fast, fd: *mut c_int) -> c_int {
    let body = |handle: &vfio_fast| {
        if fd.is_null() {
            return Err(Failure::null("the descriptor"));
        }
        let number = handle.engine.completion_fd()?.as_raw_fd();
        // SAFETY: fd is as this function's contract says.
        unsafe { out::write_optional(fd, number) };
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Ends the job in the background, whether it works or has failed.
///
/// What it has not mapped is no longer wanted, as if it had been unmapped; with VFIO_FAST_CANCEL_UNMAP, what it has mapped
/// is unmapped, too. After a job that has mapped everything, the call does nothing.
///
/// - vf: the handle
/// - flags: VFIO_FAST_CANCEL_*
///
/// # Returns
/// 0, a common error, or
/// - -EOPNOTSUPP: unknown flags
/// - -EBUSY: a transaction is open, of this thread or of another one
/// - any error of vfio_fast_unmap()
///
/// # Threads
/// Any thread; waits for other calls on the same handle. When it has returned, the job's threads have ended.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_cancel(vf: *mut vfio_fast, flags: u32) -> c_int {
    let body = |handle: &vfio_fast| {
        convert::known("flags", flags, VFIO_FAST_CANCEL_UNMAP)?;
        Ok(handle.engine.cancel(flags & VFIO_FAST_CANCEL_UNMAP != 0)?)
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}
