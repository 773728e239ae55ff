//! The results of faulting in.

use std::time::Duration;

use crate::error::Errno;
use crate::sys::pagemap::Mapped;

/// The results of one populate.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Calls that fault in, including failed ones.
    pub calls: u64,
    /// Bytes made present by those calls.
    pub bytes: u64,
    /// Bytes that were already present and skipped.
    pub present_bytes: u64,
    /// Bytes now mapped by huge pages.
    pub huge_bytes: u64,
    /// Bytes of anonymous memory now mapped by base pages.
    pub small_anonymous_bytes: u64,
    /// Bytes of files (including shmem and memfd) now mapped by base pages.
    pub small_file_bytes: u64,
    /// Bytes in chunks that were left to the map call, for one of the five errors below.
    pub skipped_bytes: u64,
    /// Chunks that failed with EINVAL: a kernel before 5.14, a special mapping, or one without the permission.
    pub einval: u64,
    /// Chunks that failed with EFAULT: an access would raise SIGBUS, as after the end of a file.
    pub efault: u64,
    /// Chunks that failed with ENOMEM: not mapped, or no memory left.
    pub enomem: u64,
    /// Chunks that failed with EHWPOISON: a page with a hardware error.
    pub ehwpoison: u64,
    /// Chunks that failed with any other errno.
    pub other: u64,
    /// Threads that worked, including the calling one.
    pub threads: u64,
    /// Threads that could not be started.
    pub thread_start_failures: u64,
    /// Threads that were not allowed to leave the CPUs of the calling thread.
    pub threads_not_moved: u64,
    /// The indices, ascending, of the pieces that turned out to be device memory. That is not an error; of the
    /// numbers above, only `calls` includes them.
    pub device_pieces: Vec<usize>,
    /// Wall time that the calling thread spent on it, including starting threads and waiting, but not on other work.
    pub duration: Duration,
}

impl Report {
    pub(super) fn left_to_the_map(&mut self, bytes: u64, errno: Errno) {
        self.skipped_bytes += bytes;
        *match errno {
            Errno::EINVAL => &mut self.einval,
            Errno::EFAULT => &mut self.efault,
            Errno::ENOMEM => &mut self.enomem,
            Errno::EHWPOISON => &mut self.ehwpoison,
            _ => &mut self.other,
        } += 1;
    }

    pub(super) fn count(&mut self, mapped: Mapped) {
        self.huge_bytes += mapped.huge;
        self.small_anonymous_bytes += mapped.small_anonymous;
        self.small_file_bytes += mapped.small_file;
    }

    /// Adds the results of one thread.
    pub(super) fn add(&mut self, done: &Self) {
        self.calls += done.calls;
        self.bytes += done.bytes;
        self.present_bytes += done.present_bytes;
        self.huge_bytes += done.huge_bytes;
        self.small_anonymous_bytes += done.small_anonymous_bytes;
        self.small_file_bytes += done.small_file_bytes;
        self.skipped_bytes += done.skipped_bytes;
        self.einval += done.einval;
        self.efault += done.efault;
        self.enomem += done.enomem;
        self.ehwpoison += done.ehwpoison;
        self.other += done.other;
        self.threads += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_has_its_counter() {
        let mut report = Report::default();
        for errno in [libc::EINVAL, libc::EFAULT, libc::ENOMEM, libc::EHWPOISON, libc::EINTR, libc::EINTR] {
            report.left_to_the_map(0x1000, Errno(errno));
        }
        let counted = [report.einval, report.efault, report.enomem, report.ehwpoison, report.other];
        assert_eq!((counted, report.skipped_bytes), ([1, 1, 1, 1, 2], 0x6000));
    }
}
