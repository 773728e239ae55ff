//! The only place that makes ioctls.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::{Errno, KernelResult};

/// Every ioctl of the engine is made here.
///
/// Interrupted calls are not repeated: the kernel returns EINTR only to a thread that is being killed. The thread
/// would never leave the loop, and the kernel removes its mappings when it has exited.
///
/// # Safety
///
/// `argument` is null for a request that takes no argument. Otherwise it points to a struct that starts with its
/// length in bytes, and that many bytes are readable and writable during the call. If the struct refers to an array
/// for results, that array is writable during the call too. If it refers to memory to map, that memory meets the
/// contract of [`crate::sys::hva::host_va`].
pub(super) unsafe fn submit(
    fd: BorrowedFd<'_>,
    request: libc::c_ulong,
    argument: *mut libc::c_void,
) -> KernelResult<libc::c_int> {
    // SAFETY: the descriptor is open, because it is borrowed. The caller guarantees that the kernel may access the
    // memory at `argument`. A descriptor of another kind fails the request with ENOTTY.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), number(request), argument) };
    if answer < 0 {
        return Err(Errno::last());
    }
    Ok(answer)
}

/// The number of a request as the C library takes it: musl's is an `int`, of which the kernel uses the same 32 bits.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "numbers of requests have 32 bits"
)]
pub(super) const fn number(request: libc::c_ulong) -> libc::Ioctl {
    request as libc::Ioctl
}
