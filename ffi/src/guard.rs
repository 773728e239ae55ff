//! The only way in: every exported function runs inside [`guard`], [`guard_handle`] or [`guard_text`].
//!
//! They store a failure as the thread's last failure and return its errno, and they keep panics from unwinding into C,
//! which is undefined behaviour. They defer the cancellation of the calling thread until the call returns. After a panic in a call on a handle, its table may no longer match the kernel, so the
//! handle is poisoned.

#![allow(unsafe_code)] // borrows the caller's handle

use std::ffi::{c_char, c_int};

use vfio_fast_engine::Deferred;

use crate::failure::{Failure, Result, remember};
use crate::handle::vfio_fast;
use crate::log::refuse_inside;
use crate::panic::caught;

/// Runs the body of an exported function that takes no handle. Returns 0, or the negative errno of the failure, which
/// it stores.
pub(crate) fn guard(body: impl FnOnce() -> Result<()>) -> c_int {
    let _deferred = Deferred::begin();
    match caught(body) {
        Ok(Ok(())) => 0,
        Ok(Err(failure)) => remember(failure),
        Err(panic) => remember(bug(&panic)),
    }
}

/// Runs the body of an exported function that takes a handle.
///
/// # Safety
/// `vf` is NULL or came from vfio_fast_open() and is not closed before this call has returned.
pub(crate) unsafe fn guard_handle(
    vf: *const vfio_fast,
    body: impl FnOnce(&vfio_fast) -> Result<()>,
) -> c_int {
    guard(|| {
        refuse_inside()?;
        // SAFETY: if it is not NULL, it points to the box that vfio_fast_open() leaked. Only vfio_fast_close() frees
        // it, and nothing borrows it mutably.
        let handle = unsafe { vf.as_ref() }.ok_or_else(|| Failure::null("the handle"))?;
        caught(|| body(handle)).unwrap_or_else(|panic| {
            handle.poison(&panic);
            Err(bug(&panic))
        })
    })
}

/// Runs the body of an exported function that returns a string, which is empty if it panics.
pub(crate) fn guard_text(body: impl FnOnce() -> *const c_char) -> *const c_char {
    let _deferred = Deferred::begin();
    caught(body).unwrap_or(c"".as_ptr())
}

/// The failure that reports a panic to the caller.
pub(crate) fn bug(panic: &str) -> Failure {
    Failure::check(
        libc::ENOTRECOVERABLE,
        format!("A bug in libvfio_fast: {panic}; a handle that this call used can only be closed now"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::last_failure;

    struct PanicsOnDrop;

    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            panic!("dropped")
        }
    }

    #[test]
    fn no_panic_crosses_whatever_its_payload() {
        assert_eq!(guard(|| panic!("static")), -libc::ENOTRECOVERABLE);
        assert_eq!(guard(|| panic!("formatted {}", 1)), -libc::ENOTRECOVERABLE);
        assert_eq!(guard(|| std::panic::panic_any(7)), -libc::ENOTRECOVERABLE);
        assert_eq!(guard(|| std::panic::panic_any(PanicsOnDrop)), -libc::ENOTRECOVERABLE);
        assert_eq!(last_failure().error, -libc::ENOTRECOVERABLE);
    }

    #[test]
    fn success_leaves_the_last_failure_alone() {
        assert_eq!(guard(|| Err(Failure::check(libc::EBUSY, "busy".to_owned()))), -libc::EBUSY);
        assert_eq!(guard(|| Ok(())), 0);
        assert_eq!(last_failure().error, -libc::EBUSY);
    }

    #[test]
    fn a_failure_without_errno_is_no_success() {
        assert_eq!(guard(|| Err(Failure::default())), -libc::EIO);
    }
}
