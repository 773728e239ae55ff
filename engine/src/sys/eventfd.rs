//! A descriptor that becomes readable when something has happened.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::error::Errno;

/// An event. A program can wait for it with poll, and read() resets it.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Creates an event that has not happened.
    pub fn new() -> Result<Self, Errno> {
        // SAFETY: the call has no pointer arguments.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(Errno::last());
        }
        // SAFETY: the kernel has just created this descriptor (it is not negative), so nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The descriptor, which belongs to the event.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Makes the descriptor readable. It cannot fail: the count would have to reach 2^64 - 1.
    pub fn signal(&self) {
        let one = 1u64;
        // SAFETY: the call reads the 8 bytes of `one`.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }

    /// Makes the descriptor not readable.
    pub fn reset(&self) {
        let mut count = 0u64;
        // SAFETY: the call writes the 8 bytes of `count`. It fails with EAGAIN if the descriptor is not readable.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_readable(event: &EventFd) -> bool {
        let mut poll = libc::pollfd { fd: event.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the call reads and writes one pollfd, and returns at once.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    #[test]
    fn it_is_readable_from_a_signal_to_a_reset() {
        let event = EventFd::new().unwrap();
        assert!(!is_readable(&event));
        event.signal();
        event.signal();
        assert!(is_readable(&event));
        event.reset();
        assert!(!is_readable(&event));
        event.reset();
        assert!(!is_readable(&event));
    }
}
