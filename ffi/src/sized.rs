//! The size rule: how structs that begin with their own size are copied from and to callers.
//!
//! A program and the library may be built with different versions of a struct, and no field may be lost silently. A
//! struct that is smaller than in its first release is rejected. An input that is larger than in this library must have
//! only zeros after the known fields. An output is truncated, or padded with zeros, to the caller's size.
//!
//! Callers' structs are read and written as bytes, so their alignment does not matter.

#![allow(unsafe_code)] // the only module that accesses callers' structs

use std::mem::{MaybeUninit, size_of};
use std::ptr;

use crate::abi::size::{MAX_SIZE, Sized32};
use crate::failure::{Failure, Result};

const SIZE_FIELD: usize = size_of::<u32>();

/// Reads and checks the size that a caller wrote into its struct.
///
/// # Safety
/// `struct_ptr` is NULL or points to at least `T::FIRST_RELEASE` readable bytes that stay unchanged during the call.
unsafe fn size_of_callers<T: Sized32>(struct_ptr: *const T) -> Result<usize> {
    if struct_ptr.is_null() {
        return Err(Failure::null(T::NAME));
    }
    // SAFETY: by this function's contract there are FIRST_RELEASE bytes at struct_ptr; the size is the first four.
    let size = unsafe { struct_ptr.cast::<u32>().read_unaligned() } as usize;
    if size < T::FIRST_RELEASE {
        return Err(Failure::check(
            libc::EINVAL,
            format!("struct {}: size is {size}, the minimum is {}", T::NAME, T::FIRST_RELEASE),
        ));
    }
    if size > MAX_SIZE {
        return Err(Failure::check(
            libc::E2BIG,
            format!("struct {}: size is {size}, the maximum is {MAX_SIZE}: was it set?", T::NAME),
        ));
    }
    Ok(size)
}

/// Copies a caller's struct.
///
/// # Safety
/// `struct_ptr` is NULL or points to as many readable bytes as the `size` in it says, and to at least
/// `T::FIRST_RELEASE`; they stay unchanged during the call.
pub(crate) unsafe fn read<T: Sized32>(struct_ptr: *const T) -> Result<T> {
    // SAFETY: this function's contract includes that of size_of_callers.
    let size = unsafe { size_of_callers(struct_ptr) }?;
    let bytes = struct_ptr.cast::<u8>();
    let mut value = MaybeUninit::<T>::zeroed();
    let known = size.min(size_of::<T>());
    // SAFETY: `known` is at most the `size` bytes readable at struct_ptr and at most the bytes of the local `value`,
    // which the caller cannot point to.
    unsafe { ptr::copy_nonoverlapping(bytes, value.as_mut_ptr().cast::<u8>(), known) };
    for offset in known..size {
        // SAFETY: offset is below `size`, and by this function's contract there are `size` bytes at struct_ptr.
        let byte = unsafe { bytes.add(offset) };
        // SAFETY: the same byte, readable for the same reason; a u8 has no alignment.
        if unsafe { byte.read() } != 0 {
            return Err(Failure::check(
                libc::E2BIG,
                format!(
                    "struct {}: byte {offset} of {size} is not zero, but this library's struct has {known} bytes: \
                     the program uses a field of a later version",
                    T::NAME
                ),
            ));
        }
    }
    // SAFETY: every byte is initialised (zeroed, then overwritten), and any such bytes are a valid T (Sized32).
    Ok(unsafe { value.assume_init() })
}

/// A caller's struct for output: checked before the call does its work, written after it has succeeded.
pub(crate) struct Output<T> {
    bytes: *mut u8,
    size: usize,
    value: std::marker::PhantomData<T>,
}

impl<T: Sized32> Output<T> {
    /// Checks the size the caller set.
    ///
    /// # Safety
    /// `struct_ptr` is NULL or points to as many writable bytes as the `size` in it says, and to at least
    /// `T::FIRST_RELEASE`; nothing else reads or writes them until this value is gone.
    pub(crate) unsafe fn new(struct_ptr: *mut T) -> Result<Self> {
        // SAFETY: this function's contract includes that of size_of_callers.
        let size = unsafe { size_of_callers(struct_ptr.cast_const()) }?;
        Ok(Self { bytes: struct_ptr.cast(), size, value: std::marker::PhantomData })
    }

    /// Like [`Output::new`], for a pointer that may be NULL.
    ///
    /// # Safety
    /// As for [`Output::new`].
    pub(crate) unsafe fn optional(struct_ptr: *mut T) -> Result<Option<Self>> {
        if struct_ptr.is_null() {
            return Ok(None);
        }
        // SAFETY: the same contract.
        unsafe { Self::new(struct_ptr) }.map(Some)
    }

    /// Writes as much of `value` as fits, then zeros. `size` in the caller's struct does not change.
    pub(crate) fn write(self, value: &T) {
        let known = self.size.min(size_of::<T>());
        let from = ptr::from_ref(value).cast::<u8>();
        // SAFETY: SIZE_FIELD is less than the bytes of a T.
        let from = unsafe { from.add(SIZE_FIELD) };
        // SAFETY: SIZE_FIELD is less than FIRST_RELEASE, which by the contract of new() are writable bytes.
        let to = unsafe { self.bytes.add(SIZE_FIELD) };
        // SAFETY: both sides have known - SIZE_FIELD more bytes: `known` is at most the size of the value, which has no
        // padding (Sized32), and at most the caller's `size` writable bytes. The caller has no pointer to the value.
        unsafe { ptr::copy_nonoverlapping(from, to, known - SIZE_FIELD) };
        // SAFETY: known is at most `size`.
        let tail = unsafe { self.bytes.add(known) };
        // SAFETY: the last size - known of the caller's `size` writable bytes.
        unsafe { ptr::write_bytes(tail, 0, self.size - known) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::size::sized32;

    /// A struct that has grown by `late` since its first release.
    #[derive(Clone, Copy, PartialEq, Debug)]
    #[repr(C)]
    struct grown {
        size: u32,
        early: u32,
        late: u64,
    }
    sized32!(grown, 8);

    fn read_bytes(bytes: &[u8]) -> Result<grown> {
        // SAFETY: the tests pass as many bytes as the size in them says, and at least FIRST_RELEASE.
        unsafe { read(bytes.as_ptr().cast::<grown>()) }
    }

    fn with_size(size: u32, rest: &[u8]) -> Vec<u8> {
        [&size.to_ne_bytes()[..], rest].concat()
    }

    #[test]
    fn fields_that_an_older_program_lacks_are_zero() {
        let value = read_bytes(&with_size(8, &[1, 0, 0, 0, 0xff, 0xff])).unwrap();
        assert_eq!(value, grown { size: 8, early: 1, late: 0 });
        // A size that ends inside a field is unusual but harmless: the missing bytes read as zero.
        let value = read_bytes(&with_size(9, &[1, 0, 0, 0, 7, 0xff])).unwrap();
        assert_eq!((value.early, value.late.to_ne_bytes()[0], value.late.to_ne_bytes()[1]), (1, 7, 0));
    }

    #[test]
    fn unknown_fields_of_a_newer_program_must_be_zero() {
        let mut bytes = with_size(24, &[0; 20]);
        assert!(read_bytes(&bytes).is_ok());
        for offset in 16..24 {
            bytes[offset] = 1;
            assert_eq!(read_bytes(&bytes).unwrap_err().errno, libc::E2BIG, "byte {offset}");
            bytes[offset] = 0;
        }
    }

    #[test]
    fn impossible_sizes_are_rejected_before_anything_else_is_read() {
        assert_eq!(read_bytes(&with_size(7, &[0; 12])).unwrap_err().errno, libc::EINVAL);
        assert_eq!(read_bytes(&with_size(4097, &[0; 12])).unwrap_err().errno, libc::E2BIG);
        assert_eq!(read_bytes(&with_size(u32::MAX, &[0; 12])).unwrap_err().errno, libc::E2BIG);
    }

    #[test]
    fn an_output_fills_exactly_the_size_of_the_caller() {
        let value = grown { size: 16, early: 0x0101_0101, late: 0x0202_0202_0202_0202 };
        for size in 8..=32_usize {
            let mut bytes = with_size(size as u32, &[0xee; 60]);
            // SAFETY: 64 bytes are there, and size is at most 32.
            let output = unsafe { Output::<grown>::new(bytes.as_mut_ptr().cast()) }.unwrap();
            output.write(&value);
            let mut expected = with_size(size as u32, &[1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]);
            expected.resize(size.max(16), 0);
            expected.truncate(size);
            expected.resize(64, 0xee);
            assert_eq!(bytes, expected, "size {size}");
        }
    }
}
