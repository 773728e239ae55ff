//! Unmapping again what the kernel refused to unmap.

use std::ffi::c_int;

use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::out;

/// Tries again to unmap what is still mapped although it is not wanted any more, because the kernel refused to unmap it.
///
/// A call that touches such a range tries again as well. This call needs no range, and does not change what is wanted:
/// other regions may be wanted in these ranges by now. Memory that failed calls have unmapped can be freed once this
/// call has returned 0. It makes no call of the kernel if nothing is left.
///
/// - vf: the handle
/// - unmapped: receives the number of bytes that were unmapped. May be NULL.
///
/// # Returns
/// 0, a common error, or
/// - -EBUSY: a transaction is open, of this thread or of another one
/// - any error of vfio_fast_commit()
///
/// # Threads
/// Any thread; waits for other calls on the same handle. The call may start threads, which block all signals and end
/// before it returns.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_retry_unmap(vf: *mut vfio_fast, unmapped: *mut u64) -> c_int {
    let body = |handle: &vfio_fast| {
        let bytes = handle.engine.retry_unmap()?;
        // SAFETY: unmapped is as this function's contract says.
        unsafe { out::write_optional(unmapped, bytes) };
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}
