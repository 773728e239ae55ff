//! Delivers the messages of one handle to the caller's log function.

#![allow(unsafe_code)] // calls the caller's function

use std::cell::Cell;
use std::ffi::{c_char, c_void};

use crate::failure::{Failure, Result, c_text};

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A caller's log function and its argument.
pub(crate) struct Sink {
    function: unsafe extern "C" fn(*mut c_void, u32, *const c_char),
    opaque: *mut c_void,
}

// SAFETY: `opaque` is never dereferenced here, only passed back. By the contract of vfio_fast_open() the function may
// be called on any thread that calls into the handle.
unsafe impl Send for Sink {}
// SAFETY: as for Send; the contract includes calls from several threads at once.
unsafe impl Sync for Sink {}

impl Sink {
    /// # Safety
    /// Until the last use of the sink, `function` can be called with `opaque` on any thread that calls into the handle,
    /// and returns normally.
    pub(crate) unsafe fn new(
        function: unsafe extern "C" fn(*mut c_void, u32, *const c_char),
        opaque: *mut c_void,
    ) -> Self {
        Self { function, opaque }
    }

    /// Delivers one message.
    pub(crate) fn deliver(&self, level: u32, message: &str) {
        let message = c_text(message);
        let outer = INSIDE.try_with(|inside| inside.replace(true));
        // SAFETY: function, opaque and thread are as the contract of new() says; message outlives the call.
        unsafe { (self.function)(self.opaque, level, message.as_ptr()) };
        if let Ok(outer) = outer {
            let _ = INSIDE.try_with(|inside| inside.set(outer));
        }
    }
}

/// Fails if the calling thread is inside a log function: the handle may be locked, and waiting for it would never end.
pub(crate) fn refuse_inside() -> Result<()> {
    if INSIDE.try_with(Cell::get).unwrap_or(false) {
        return Err(Failure::check(libc::EDEADLK, "A log function called into the library".to_owned()));
    }
    Ok(())
}
