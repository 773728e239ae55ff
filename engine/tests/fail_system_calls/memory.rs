//! The memory of a guest.

use std::ffi::c_int;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use common::range;
use vfio_fast_engine::host_va;
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_testing as common;

pub const MIB: u64 = 1 << 20;
/// Bytes of the shared memory, and of huge pages: enough for two threads, and for three together with the private one.
pub const BYTES: u64 = 4 * MIB;
pub const PRIVATE_BYTES: u64 = 2 * MIB;
/// Where the memories are: each crosses a chunk of 16 MiB, so that discarding takes two.
pub const SHARED: u64 = (128 << 30) - 2 * MIB;
pub const PRIVATE: u64 = (132 << 30) - MIB;
pub const HUGE: u64 = 136 << 30;

/// The memory of a guest.
pub struct Memory {
    pub file: File,
}

impl Memory {
    pub fn new() -> Self {
        let file = memory_file(0);
        file.set_len(BYTES).unwrap();
        map_at(SHARED, libc::MAP_SHARED, file.as_raw_fd());
        map_at(PRIVATE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
        Self { file }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        [SHARED, PRIVATE].into_iter().for_each(unmap);
    }
}

pub fn unmap(address: u64) {
    // SAFETY: the mapping is this test's, and no Rust object uses it.
    assert_eq!(unsafe { libc::munmap(address as *mut libc::c_void, bytes_at(address) as usize) }, 0);
}

pub fn memory_file(flags: libc::c_uint) -> File {
    // SAFETY: the name ends with a zero.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC | flags) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    unsafe { File::from_raw_fd(fd) }
}

pub fn bytes_at(address: u64) -> u64 {
    if address == PRIVATE { PRIVATE_BYTES } else { BYTES }
}

pub fn map_at(address: u64, flags: c_int, fd: c_int) {
    let bytes = bytes_at(address) as usize;
    let (protection, address) = (libc::PROT_READ | libc::PROT_WRITE, address as *mut libc::c_void);
    let flags = flags | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
    // SAFETY: with MAP_FIXED_NOREPLACE a mapping replaces nothing.
    let got = unsafe { libc::mmap(address, bytes, protection, flags, fd, 0) };
    assert_eq!(got, address, "{}", std::io::Error::last_os_error());
}

pub fn region(iova: u64, address: u64) -> Region {
    // SAFETY: the memory at each address that is passed here stays mapped until the process ends.
    let hva = unsafe { host_va(address) };
    let (perm, kind, backing) = (Perm::ReadWrite, Kind::Ram, Backing(address));
    Region { range: range(iova, bytes_at(address)), hva, perm, kind, backing, join: false, exact: false }
}
