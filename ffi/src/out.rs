//! Single values returned through callers' pointers.

#![allow(unsafe_code)] // writes through callers' pointers

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
