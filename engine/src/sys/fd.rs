//! File descriptors of this process.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::error::Errno;

/// The minimum number of a duplicate: 0 to 2 are the standard streams.
const LOWEST_FD: libc::c_int = 3;

/// Duplicates `fd`; the duplicate is closed on exec.
///
/// Takes a raw number because it comes from a C caller: EBADF if it is closed or negative.
pub fn duplicate(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: F_DUPFD_CLOEXEC accesses no memory, and fails with EBADF if the number is not an open file.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, LOWEST_FD) };
    if copy < 0 {
        return Err(Errno::last());
    }
    // SAFETY: the kernel has just created this descriptor (it is not negative), so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_duplicate_is_a_new_close_on_exec_descriptor() {
        let file = fs::File::open("/proc/self/status").unwrap();
        let copy = duplicate(file.as_raw_fd()).unwrap();
        assert!(copy.as_raw_fd() >= LOWEST_FD);
        assert_ne!(copy.as_raw_fd(), file.as_raw_fd());
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", copy.as_raw_fd())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let flags = i32::from_str_radix(flags, 8).unwrap();
        assert_eq!(flags & libc::O_CLOEXEC, libc::O_CLOEXEC);
        assert_eq!(duplicate(-1).unwrap_err(), Errno(libc::EBADF));
    }
}
