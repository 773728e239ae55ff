//! The last failure of the calling thread.

use std::ffi::{c_char, c_int};

use crate::abi::vfio_fast_failure;
use crate::failure;
use crate::guard::{guard, guard_text};
use crate::sized::Output;

/// Tells the last failure on the calling thread, in numbers. A call that succeeds does not change it.
///
/// - failure: receives it; error is 0 if no call of this thread has failed yet. Written only on success.
///
/// # Returns
/// 0, or (and this then is the last failure)
/// - -EINVAL: failure is NULL; the struct is too short
/// - -E2BIG: the struct is too long (the size rule)
///
/// # Threads
/// Any; each thread has its own.
///
/// # Safety
/// failure is NULL or points to as many bytes as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_last_failure(failure: *mut vfio_fast_failure) -> c_int {
    guard(|| {
        // SAFETY: failure is as this function's contract says, and only this call uses it until it returns.
        let output = unsafe { Output::new(failure) }?;
        output.write(&failure::last_failure());
        Ok(())
    })
}

/// Tells the last failure on the calling thread, in words for people: what failed, what was needed, what there was, and
/// what to change. A call that succeeds does not change it. The text may change in any release; programs read
/// vfio_fast_last_failure().
///
/// # Returns
/// The text, never NULL, empty if no call of this thread has failed yet. It is the library's, and valid until the next
/// call of this thread into the library.
///
/// # Threads
/// Any; each thread has its own.
#[unsafe(no_mangle)]
pub extern "C" fn vfio_fast_last_error() -> *const c_char {
    guard_text(failure::last_text)
}
