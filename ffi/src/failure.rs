//! Failures on their way to C: an errno to return, and the words and numbers the thread can ask for afterwards.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};

use vfio_fast_engine::error::{Error, Op};

use crate::abi::{
    VFIO_FAST_OP_CHECK, VFIO_FAST_OP_DIRTY, VFIO_FAST_OP_DISCARD, VFIO_FAST_OP_INFO, VFIO_FAST_OP_MAP,
    VFIO_FAST_OP_NONE, VFIO_FAST_OP_OPEN, VFIO_FAST_OP_UNMAP, vfio_fast_failure,
};

/// What functions of this crate that can fail return.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Why a call failed.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    /// VFIO_FAST_OP_*
    pub(crate) op: u32,
    /// As errno(3) has it: positive.
    pub(crate) errno: i32,
    pub(crate) iova: u64,
    pub(crate) length: u64,
    pub(crate) hva: u64,
    pub(crate) needed: u64,
    pub(crate) available: u64,
    pub(crate) text: String,
}

impl Failure {
    /// A check in this crate that did not hold: the engine was not asked.
    pub(crate) fn check(errno: i32, text: String) -> Self {
        Self { op: VFIO_FAST_OP_CHECK, errno, text, ..Self::default() }
    }

    /// A pointer that must not be NULL was.
    pub(crate) fn null(what: &str) -> Self {
        Self::check(libc::EINVAL, format!("The pointer to {what} is NULL"))
    }

    /// A field of a struct has a value this version does not know.
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

/// Before the first failure. The size is the caller's and never copied out.
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

/// C text of a message; what stands behind a NUL inside it would not be seen anyway.
pub(crate) fn c_text(text: &str) -> CString {
    let seen = text.split('\0').next().unwrap_or_default();
    CString::new(seen).unwrap_or_default()
}

/// Keeps `failure` as the thread's last one and answers its negative errno.
pub(crate) fn remember(failure: Failure) -> i32 {
    // An engine that reports errno 0 has failed all the same, and 0 would be success.
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
    // A thread that calls from its own thread-local destructors may have lost its slot: it keeps the errno.
    let _ = LAST.try_with(|slot| slot.replace(last));
    error
}

/// The thread's last failure.
pub(crate) fn last_failure() -> vfio_fast_failure {
    LAST.try_with(|slot| slot.borrow().failure).unwrap_or(NO_FAILURE)
}

/// The text of the thread's last failure, valid until its next one.
pub(crate) fn last_text() -> *const c_char {
    const GONE: &CStr = c"";
    LAST.try_with(|slot| slot.borrow().text.as_ptr()).unwrap_or(GONE.as_ptr())
}
