//! The last failure of the calling thread.

use std::ffi::{c_char, c_int};

use crate::abi::vfio_fast_failure;
use crate::failure;
use crate::guard::{guard, guard_text};
use crate::sized::Output;

/// Returns the last failure of the calling thread, in numbers. A call that succeeds does not change it.
///
/// - failure: receives the failure; its error is 0 if no call of this thread has failed
///
/// # Returns
/// 0, or one of the following, which then is the last failure:
/// - -EINVAL: failure is NULL; the struct is too short
/// - -E2BIG: the struct is too long
///
/// # Threads
/// Any thread; each has its own last failure.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_last_failure(failure: *mut vfio_fast_failure) -> c_int {
    guard(|| {
        // SAFETY: failure is as this function's contract says, and only this call uses it until it returns.
        let output = unsafe { Output::new(failure) }?;
        output.write(&failure::last_failure());
        Ok(())
    })
}

/// Returns a message that describes the last failure of the calling thread: what failed, what was needed, what was
/// available and what to change. A call that succeeds does not change it. The wording may change in any release;
/// programs use vfio_fast_last_failure().
///
/// # Returns
/// The message, never NULL, and empty if no call of this thread has failed. It belongs to the library and is valid
/// until the thread calls the library again.
///
/// # Threads
/// Any thread; each has its own last failure.
#[unsafe(no_mangle)]
pub extern "C" fn vfio_fast_last_error() -> *const c_char {
    guard_text(failure::last_text)
}
