//! File descriptors of this process.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::error::Errno;

/// The minimum number of a duplicate: 0 to 2 are the standard streams.
const LOWEST_FD: libc::c_int = 3;

/// A descriptor that a caller has opened, borrowed. A C caller names it by its number, which may not be open: calls that
/// use it then fail with EBADF.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor<'a> {
    number: RawFd,
    borrowed: PhantomData<BorrowedFd<'a>>,
}

impl Descriptor<'_> {
    /// The descriptor with this number.
    ///
    /// # Safety
    /// If the number is open, it belongs to the caller or is lent to it, and stays open for the lifetime of the result.
    /// If it is not, nobody opens a file that gets this number before the result is gone.
    pub const unsafe fn from_raw(number: RawFd) -> Self {
        Self { number, borrowed: PhantomData }
    }
}

impl<'a> From<BorrowedFd<'a>> for Descriptor<'a> {
    fn from(fd: BorrowedFd<'a>) -> Self {
        Self { number: fd.as_raw_fd(), borrowed: PhantomData }
    }
}

/// Duplicates `fd`; the duplicate is closed on exec. EBADF if it is not open.
pub fn duplicate(fd: Descriptor<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: F_DUPFD_CLOEXEC accesses no memory, and fails with EBADF if the number is not an open file.
    let copy = unsafe { libc::fcntl(fd.number, libc::F_DUPFD_CLOEXEC, LOWEST_FD) };
    if copy < 0 {
        return Err(Errno::last());
    }
    // SAFETY: the kernel has just created this descriptor (it is not negative), so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// The file that a descriptor refers to, whichever call opened it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileId {
    /// The number of its file system.
    pub device: libc::dev_t,
    /// Its number there.
    pub inode: libc::ino_t,
}

/// The file that `fd` refers to. EBADF if it is not open.
pub fn file_id(fd: Descriptor<'_>) -> Result<FileId, Errno> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the struct is the one that the call fills. It fails with EBADF if the number is not an open file.
    if unsafe { libc::fstat(fd.number, status.as_mut_ptr()) } != 0 {
        return Err(Errno::last());
    }
    // SAFETY: the call succeeded, so it has filled the struct.
    let status = unsafe { status.assume_init() };
    Ok(FileId { device: status.st_dev, inode: status.st_ino })
}

/// Whether two descriptors were duplicated from one another; `None` if the kernel (before 6.10) does not say. All files
/// without a name have the same number, such as the devices that are opened through VFIO groups.
pub fn is_same_opening(one: Descriptor<'_>, other: Descriptor<'_>) -> Option<bool> {
    /// `F_LINUX_SPECIFIC_BASE + 3`
    const F_DUPFD_QUERY: libc::c_int = 1027;
    // SAFETY: the call accesses no memory.
    match unsafe { libc::fcntl(one.number, F_DUPFD_QUERY, other.number) } {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;

    use super::*;

    /// A number that is never open.
    fn none() -> Descriptor<'static> {
        // SAFETY: no file gets a negative number.
        unsafe { Descriptor::from_raw(-1) }
    }

    #[test]
    fn a_duplicate_is_a_new_close_on_exec_descriptor() {
        let file = fs::File::open("/proc/self/status").unwrap();
        let copy = duplicate(file.as_fd().into()).unwrap();
        assert!(copy.as_raw_fd() >= LOWEST_FD);
        assert_ne!(copy.as_raw_fd(), file.as_raw_fd());
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", copy.as_raw_fd())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let flags = i32::from_str_radix(flags, 8).unwrap();
        assert_eq!(flags & libc::O_CLOEXEC, libc::O_CLOEXEC);
        assert_eq!(duplicate(none()).unwrap_err(), Errno(libc::EBADF));
    }

    #[test]
    fn a_file_is_the_same_whoever_opened_it() {
        let id = |path| file_id(fs::File::open(path).unwrap().as_fd().into()).unwrap();
        assert_eq!(id("/dev/null"), id("/dev/null"));
        assert_ne!(id("/dev/null"), id("/dev/zero"));
        assert_eq!(file_id(none()).unwrap_err(), Errno(libc::EBADF));
    }

    #[test]
    fn files_without_a_name_are_told_apart_by_who_opened_them() {
        let open = || {
            // SAFETY: the call accesses no memory.
            let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
            assert!(fd >= 0);
            // SAFETY: the kernel has just created this descriptor, so nothing else owns it.
            unsafe { OwnedFd::from_raw_fd(fd) }
        };
        let (one, other) = (open(), open());
        let copy = duplicate(one.as_fd().into()).unwrap();
        assert_eq!(file_id(one.as_fd().into()), file_id(other.as_fd().into()));
        // The other answer is that of a kernel before 6.10.
        let same = |fd: &OwnedFd| is_same_opening(one.as_fd().into(), fd.as_fd().into());
        assert!([(Some(true), Some(false)), (None, None)].contains(&(same(&copy), same(&other))));
        assert_eq!(is_same_opening(one.as_fd().into(), none()), None);
    }
}
