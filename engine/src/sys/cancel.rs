//! Keeps pthread_cancel() from ending a thread inside the library.

#![allow(unsafe_code)] // calls the C library

use std::ffi::c_int;

/// PTHREAD_CANCEL_DISABLE, of glibc and musl.
const DISABLE: c_int = 1;

unsafe extern "C" {
    // The libc crate does not declare it for Linux.
    safe fn pthread_setcancelstate(state: c_int, old: Option<&mut c_int>) -> c_int;
}

/// Until it is dropped, a request to cancel the calling thread stays pending.
///
/// The C library ends a cancelled thread at its next open(), read() or other cancellation point, by unwinding it. Rust
/// code cannot be unwound in this way: the process would be aborted. Making such a request wait takes no system call.
#[derive(Debug)]
pub struct Deferred {
    /// The state to restore.
    state: c_int,
}

impl Deferred {
    /// From now on.
    pub fn begin() -> Self {
        let mut state = DISABLE;
        // It fails only for another state than the two that there are.
        let _ = pthread_setcancelstate(DISABLE, Some(&mut state));
        Self { state }
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        // Not a cancellation point: a pending request ends the thread at one of the caller's.
        let _ = pthread_setcancelstate(self.state, None);
    }
}
