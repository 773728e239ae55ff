//! What faulting in did, in numbers.

use std::time::Duration;

use crate::error::Errno;
use crate::sys::pagemap::Mapped;

/// What a populate did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Calls that fault in, failed ones included.
    pub calls: u64,
    /// Bytes made present by them.
    pub bytes: u64,
    /// Bytes that were present before, and passed over.
    pub present_bytes: u64,
    /// Bytes that are mapped by huge pages now.
    pub huge_bytes: u64,
    /// Bytes of anonymous memory that are mapped by base pages now.
    pub small_anonymous_bytes: u64,
    /// Bytes of files (shmem and memfd are files) that are mapped by base pages now.
    pub small_file_bytes: u64,
    /// Bytes in chunks that were left to the map call, for one of the five reasons below.
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
    /// Threads that worked, the calling one included.
    pub threads: u64,
    /// Threads that could not be started.
    pub thread_start_failures: u64,
    /// Indices, ascending, of the pieces that turned out to be device memory. Nothing is wrong with them: of the
    /// numbers above they are in `calls` only.
    pub device_pieces: Vec<usize>,
    /// Wall time the calling thread gave to it, threads and waiting included, without what it did in between.
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

    /// Adds what one thread did.
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
