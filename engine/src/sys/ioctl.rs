//! The one place that makes ioctls.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::{Errno, KernelResult};

/// Every ioctl of the engine is made here.
///
/// An interrupted call is not repeated: the kernel returns EINTR only to a thread that is being killed. The thread
/// would never leave a loop, and the kernel removes its mappings when it is gone.
///
/// # Safety
///
/// `argument` is null for a request that takes no argument; otherwise it points to a struct that starts with its length
/// in bytes, and that many bytes are readable and writable for the call. Where the struct names an array for the
/// answer, that is writable for the call too. Where it names memory to map, that is such as
/// [`crate::sys::hva::host_va`] asks for.
pub(super) unsafe fn submit(
    fd: BorrowedFd<'_>,
    request: libc::c_ulong,
    argument: *mut libc::c_void,
) -> KernelResult<libc::c_int> {
    // SAFETY: the descriptor is open, as it is borrowed. The caller promises that the kernel may read and write the
    // memory at `argument`. A request to a descriptor of another kind fails with ENOTTY.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if answer < 0 {
        return Err(Errno::last());
    }
    Ok(answer)
}
