//! Memory that ends where an unreadable page begins: who reads or writes one byte too many ends the process.
#![allow(unsafe_code)]

use std::ptr;

const PAGE: usize = 4096;
/// Room for the largest struct of the size rule, and some more.
const BYTES: usize = 2 * PAGE;

pub(super) struct Edge {
    start: *mut u8,
}

impl Edge {
    pub(super) fn new() -> Self {
        let (readable, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: without MAP_FIXED a mapping replaces nothing.
        let start = unsafe { libc::mmap(ptr::null_mut(), BYTES + PAGE, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: the first part of this mapping, which nothing uses yet.
        assert_eq!(unsafe { libc::mprotect(start, BYTES, readable) }, 0);
        Self { start: start.cast() }
    }

    /// Puts these bytes right before the edge.
    pub(super) fn place<T>(&self, bytes: &[u8]) -> *mut T {
        assert!(bytes.len() <= BYTES);
        // SAFETY: inside the mapping, of which BYTES bytes can be written.
        let at = unsafe { self.start.add(BYTES - bytes.len()) };
        // SAFETY: as many bytes up to the edge, and none of them belongs to a Rust value.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        at.cast()
    }

    /// The bytes right before the edge.
    pub(super) fn bytes(&self, count: usize) -> Vec<u8> {
        assert!(count <= BYTES);
        // SAFETY: inside the mapping.
        let at = unsafe { self.start.add(BYTES - count) };
        // SAFETY: all of them were mapped as zeros, and nothing changes them during this call.
        unsafe { std::slice::from_raw_parts(at, count) }.to_vec()
    }

    /// All of the memory, for the library to discard.
    pub(super) fn range(&self) -> (u64, u64) {
        (self.start as u64, BYTES as u64)
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        // SAFETY: the mapping of new(), to which no pointer is used any more.
        unsafe { libc::munmap(self.start.cast(), BYTES + PAGE) };
    }
}

/// The bytes of a struct of the C interface, none of which have padding.
pub(super) fn bytes_of<T: Copy>(value: &T) -> Vec<u8> {
    // SAFETY: the bytes of a value that is borrowed, all of which are initialised.
    unsafe { std::slice::from_raw_parts(ptr::from_ref(value).cast(), size_of::<T>()) }.to_vec()
}
