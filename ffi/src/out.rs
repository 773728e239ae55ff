//! Values and lists returned through callers' pointers.

#![allow(unsafe_code)] // writes through callers' pointers

use crate::failure::{Failure, Result};

/// Writes `value` unless `pointer` is NULL.
///
/// # Safety
/// `pointer` is NULL or points to a `T` that is writable and that nothing else uses during the call.
pub(crate) unsafe fn write_optional<T>(pointer: *mut T, value: T) {
    if !pointer.is_null() {
        // SAFETY: not NULL, so by this function's contract it is a writable T.
        unsafe { pointer.write(value) };
    }
}

/// Writes `list` to the array at `first`, which has `*count` elements, and its length to `count`. If `first` is NULL,
/// writes only the length. `what` is the array's name in messages.
///
/// # Safety
/// `count` is NULL or points to a number, and `first` is NULL or points to that many elements. Both are writable, and
/// nothing else uses them during the call.
pub(crate) unsafe fn write_list<T: Copy>(
    first: *mut T,
    count: *mut u64,
    list: &[T],
    what: &str,
) -> Result<()> {
    if count.is_null() {
        return Err(Failure::null("count"));
    }
    if !first.is_null() {
        if !first.is_aligned() {
            return Err(Failure::check(
                libc::EINVAL,
                format!("{what}: the array at {first:p} is not aligned"),
            ));
        }
        // SAFETY: count is not NULL, so by this function's contract it is readable.
        let elements = unsafe { count.read() };
        if elements < list.len() as u64 {
            let text = format!("{what}: the array has {elements} elements, and {} are needed", list.len());
            return Err(Failure::check(libc::EMSGSIZE, text));
        }
        // SAFETY: the array is neither NULL nor misaligned, has at least as many elements as the list, and by this
        // function's contract is writable and not used by anything else. The list is not the caller's.
        unsafe { std::ptr::copy_nonoverlapping(list.as_ptr(), first, list.len()) };
    }
    // SAFETY: count is not NULL, so by this function's contract it is writable.
    unsafe { count.write(list.len() as u64) };
    Ok(())
}
