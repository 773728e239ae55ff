//! Arrays of callers.

#![allow(unsafe_code)] // the one module that reads callers' arrays

use crate::failure::{Failure, Result};

/// A caller's array of `count` numbers, which messages call `what`.
///
/// # Safety
/// `first` is NULL or points to `count` numbers that stay readable and unchanged during `'a`, the call.
pub(crate) unsafe fn numbers<'a>(first: *const u64, count: u64, what: &str) -> Result<&'a [u64]> {
    const MOST: usize = isize::MAX as usize / size_of::<u64>();
    if count == 0 {
        return Ok(&[]);
    }
    if first.is_null() {
        return Err(Failure::null(what));
    }
    let refused = |text| Err(Failure::check(libc::EINVAL, text));
    let Some(count) = usize::try_from(count).ok().filter(|count| *count <= MOST) else {
        return refused(format!("{what}: {count} do not fit into the address space"));
    };
    if !first.is_aligned() {
        return refused(format!("{what}: the array at {first:p} is not aligned"));
    }
    // SAFETY: the caller vouches for `count` readable and unchanging numbers at `first`, which is neither NULL nor
    // misaligned; so many are no more than isize::MAX bytes.
    Ok(unsafe { std::slice::from_raw_parts(first, count) })
}

/// A caller's bitmap of `count` words, which messages call `what`.
///
/// # Safety
/// `first` is NULL or points to `count` words that only the result is used for during `'a`, the call.
pub(crate) unsafe fn words<'a>(first: *mut u64, count: u64, what: &str) -> Result<&'a mut [u64]> {
    // SAFETY: as this function's contract says; what is checked is only that it can be an array.
    let count = unsafe { numbers(first, count, what) }?.len();
    if count == 0 {
        return Ok(&mut []);
    }
    // SAFETY: `numbers` found it neither NULL nor misaligned nor too long, and its result is gone; by this function's contract
    // nobody else uses these words meanwhile.
    Ok(unsafe { std::slice::from_raw_parts_mut(first, count) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(first: *const u64, count: u64) -> i32 {
        // SAFETY: none of the calls below gets as far as the array.
        unsafe { numbers(first, count, "x") }.unwrap_err().errno
    }

    #[test]
    fn only_arrays_that_can_be_are_read() {
        let array = [1, 2, 3];
        // SAFETY: three numbers are there.
        assert_eq!(unsafe { numbers(array.as_ptr(), 3, "x") }.unwrap(), array);
        // SAFETY: of no numbers none is read.
        assert!(unsafe { numbers(std::ptr::null(), 0, "x") }.unwrap().is_empty());
        assert_eq!(errno(std::ptr::null(), 1), libc::EINVAL);
        assert_eq!(errno(array.as_ptr(), u64::MAX / 8), libc::EINVAL);
        assert_eq!(errno(array.as_ptr().wrapping_byte_add(1), 1), libc::EINVAL);
    }
}
