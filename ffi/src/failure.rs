//! Failures: the errno that a call returns, and the message and numbers of the thread's last failure.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};

use vfio_fast_engine::error::{Error, Op};

use crate::abi::{
    VFIO_FAST_OP_CHECK, VFIO_FAST_OP_DIRTY, VFIO_FAST_OP_DISCARD, VFIO_FAST_OP_INFO, VFIO_FAST_OP_MAP,
    VFIO_FAST_OP_NONE, VFIO_FAST_OP_OPEN, VFIO_FAST_OP_UNMAP, vfio_fast_failure,
};

/// The result of functions of this crate that can fail.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Why a call failed.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    /// VFIO_FAST_OP_*
    pub(crate) op: u32,
    /// Positive, as in errno(3).
    pub(crate) errno: i32,
    pub(crate) iova: u64,
    pub(crate) length: u64,
    pub(crate) hva: u64,
    pub(crate) needed: u64,
    pub(crate) available: u64,
    pub(crate) text: String,
}

impl Failure {
    /// A check in this crate failed; the engine was not called.
    pub(crate) fn check(errno: i32, text: String) -> Self {
        Self { op: VFIO_FAST_OP_CHECK, errno, text, ..Self::default() }
    }

    /// A pointer that must not be NULL is NULL.
    pub(crate) fn null(what: &str) -> Self {
        Self::check(libc::EINVAL, format!("The pointer to {what} is NULL"))
    }

    /// A field of a struct has a value that this version does not know.
    pub(crate) fn unknown(field: &str, value: u32) -> Self {
        Self::check(libc::EOPNOTSUPP, format!("{field}: this version does not know {value:#x}"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (needed, available) = error.needed_and_available().unwrap_or((0, 0));
        Self {
            op: match error.op {
                Op::Open => VFIO_FAST_OP_OPEN,
                Op::Check => VFIO_FAST_OP_CHECK,
                Op::Map => VFIO_FAST_OP_MAP,
                Op::Unmap => VFIO_FAST_OP_UNMAP,
                Op::Info => VFIO_FAST_OP_INFO,
                Op::Dirty => VFIO_FAST_OP_DIRTY,
                Op::Discard => VFIO_FAST_OP_DISCARD,
            },
            errno: error.errno.0,
            iova: error.range.map_or(0, |range| range.start()),
            length: error.range.map_or(0, |range| range.last().wrapping_sub(range.start()).wrapping_add(1)),
            hva: error.hva.map_or(0, |hva| hva.raw()),
            needed,
            available,
            text: error.to_string(),
        }
    }
}

struct Last {
    failure: vfio_fast_failure,
    text: CString,
}

/// The last failure before there is one. `size` is never copied to the caller.
const NO_FAILURE: vfio_fast_failure = vfio_fast_failure {
    size: 0,
    op: VFIO_FAST_OP_NONE,
    error: 0,
    reserved: 0,
    iova: 0,
    length: 0,
    hva: 0,
    needed: 0,
    available: 0,
};

thread_local! {
    static LAST: RefCell<Last> = RefCell::new(Last { failure: NO_FAILURE, text: CString::default() });
}

/// A message as a C string. It ends at the first NUL in `text`.
pub(crate) fn c_text(text: &str) -> CString {
    let seen = text.split('\0').next().unwrap_or_default();
    CString::new(seen).unwrap_or_default()
}

/// Stores `failure` as the thread's last failure and returns its negative errno.
pub(crate) fn remember(failure: Failure) -> i32 {
    // A failure with errno 0 must not be returned as success.
    let error = if failure.errno > 0 { -failure.errno } else { -libc::EIO };
    let last = Last {
        failure: vfio_fast_failure {
            op: failure.op,
            error,
            iova: failure.iova,
            length: failure.length,
            hva: failure.hva,
            needed: failure.needed,
            available: failure.available,
            ..NO_FAILURE
        },
        text: c_text(&failure.text),
    };
    // In the destructors of thread-locals the slot may already be gone; the errno is still returned.
    let _ = LAST.try_with(|slot| slot.replace(last));
    error
}

/// The thread's last failure.
pub(crate) fn last_failure() -> vfio_fast_failure {
    LAST.try_with(|slot| slot.borrow().failure).unwrap_or(NO_FAILURE)
}

/// The message of the thread's last failure, valid until its next failure.
pub(crate) fn last_text() -> *const c_char {
    const GONE: &CStr = c"";
    LAST.try_with(|slot| slot.borrow().text.as_ptr()).unwrap_or(GONE.as_ptr())
}
