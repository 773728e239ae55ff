//! Arrays that callers pass.

#![allow(unsafe_code)] // the one module that reads callers' arrays

use crate::abi::vfio_fast_entry;
use crate::failure::{Failure, Result};

/// Borrows a caller's array of `count` numbers. `what` is its name in messages.
///
/// # Safety
/// `first` is NULL or points to `count` numbers that stay readable and unchanged during `'a`, the call.
pub(crate) unsafe fn numbers<'a>(first: *const u64, count: u64, what: &str) -> Result<&'a [u64]> {
    // SAFETY: this function's contract.
    unsafe { values(first, count, what) }
}

/// Borrows `count` bytes of a caller. `what` is their name in messages.
///
/// # Safety
/// `first` is NULL or points to `count` bytes that stay readable and unchanged during `'a`, the call.
pub(crate) unsafe fn bytes<'a>(first: *const u8, count: u64, what: &str) -> Result<&'a [u8]> {
    // SAFETY: this function's contract.
    unsafe { values(first, count, what) }
}

/// Borrows a caller's array of `count` entries. `what` is its name in messages.
///
/// # Safety
/// `first` is NULL or points to `count` entries that stay readable and unchanged during `'a`, the call.
pub(crate) unsafe fn entries<'a>(
    first: *const vfio_fast_entry,
    count: u64,
    what: &str,
) -> Result<&'a [vfio_fast_entry]> {
    // SAFETY: this function's contract.
    unsafe { values(first, count, what) }
}

/// Borrows a caller's array of plain values.
///
/// # Safety
/// `T` is an integer, or a struct of integers without padding. `first` is NULL or points to `count` of them that stay readable and unchanged during `'a`, the
/// call.
unsafe fn values<'a, T>(first: *const T, count: u64, what: &str) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if first.is_null() {
        return Err(Failure::null(what));
    }
    let refused = |text| Err(Failure::check(libc::EINVAL, text));
    let max = isize::MAX as usize / size_of::<T>();
    let Some(count) = usize::try_from(count).ok().filter(|count| *count <= max) else {
        return refused(format!("{what}: {count} elements do not fit in the address space"));
    };
    if !first.is_aligned() {
        return refused(format!("{what}: the array at {first:p} is not aligned"));
    }
    // SAFETY: by this function's contract there are `count` readable and unchanging values at `first`. It was checked
    // that `first` is neither NULL nor misaligned and that the array has at most isize::MAX bytes.
    Ok(unsafe { std::slice::from_raw_parts(first, count) })
}

/// Borrows a caller's bitmap of `count` words. `what` is its name in messages.
///
/// # Safety
/// `first` is NULL or points to `count` words that are accessed only through the result during `'a`, the call.
pub(crate) unsafe fn words<'a>(first: *mut u64, count: u64, what: &str) -> Result<&'a mut [u64]> {
    // SAFETY: this function's contract includes that of numbers(). The result is used only for its length.
    let count = unsafe { numbers(first, count, what) }?.len();
    if count == 0 {
        return Ok(&mut []);
    }
    // SAFETY: numbers() has checked that `first` is not NULL and not misaligned and that the array is not too long; its
    // result is gone. By this function's contract nothing else accesses these words during 'a.
    Ok(unsafe { std::slice::from_raw_parts_mut(first, count) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(first: *const u64, count: u64) -> i32 {
        // SAFETY: all calls below fail before they read the array.
        unsafe { numbers(first, count, "x") }.unwrap_err().errno
    }

    #[test]
    fn only_valid_arrays_are_read() {
        let array = [1, 2, 3];
        // SAFETY: the array has three numbers.
        assert_eq!(unsafe { numbers(array.as_ptr(), 3, "x") }.unwrap(), array);
        // SAFETY: an array of no numbers is not read.
        assert!(unsafe { numbers(std::ptr::null(), 0, "x") }.unwrap().is_empty());
        assert_eq!(errno(std::ptr::null(), 1), libc::EINVAL);
        assert_eq!(errno(array.as_ptr(), u64::MAX / 8), libc::EINVAL);
        assert_eq!(errno(array.as_ptr().wrapping_byte_add(1), 1), libc::EINVAL);
    }
}
