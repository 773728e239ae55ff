//! How much a file system of memory can still hold.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::path::Path;

use super::proc;

/// Where the kernel shows the pools of huge pages, one folder for each size.
const POOLS: &str = "/sys/kernel/mm/hugepages";

/// A kind of file system, as far as it matters for pinning its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// tmpfs, with the bytes it can still hold; `None`: no limit.
    Tmpfs(Option<u64>),
    /// hugetlbfs, with the bytes in the free pages of its pool, and in those that it may add.
    Hugetlbfs(u64),
    /// A file system on a disk, which writes the pages of shared mappings back.
    Disk,
    /// Any other.
    Other,
}

/// From include/uapi/linux/magic.h and fs/xfs: XFS_SUPER_MAGIC, F2FS_SUPER_MAGIC.
const XFS: i64 = 0x5846_5342;
const F2FS: i64 = 0xf2f5_2010;

/// The file system that contains `path`; `None` if the kernel does not say.
pub(crate) fn of(path: &Path) -> Option<Kind> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
    let mut system = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path ends with a zero, and the struct is the one that the call fills.
    let asked = unsafe { libc::statfs(path.as_ptr(), system.as_mut_ptr()) };
    // SAFETY: the call succeeded, so it has filled the struct.
    let system = (asked == 0).then(|| unsafe { system.assume_init() })?;
    let block = u64::try_from(system.f_bsize).ok()?;
    // The type of the field differs between C libraries.
    #[allow(clippy::unnecessary_cast)]
    let magic = system.f_type as i64;
    Some(match magic {
        libc::TMPFS_MAGIC => {
            Kind::Tmpfs((system.f_blocks > 0).then(|| system.f_bavail.saturating_mul(block)))
        }
        libc::HUGETLBFS_MAGIC => Kind::Hugetlbfs(free_huge_pages(block)?.saturating_mul(block)),
        libc::EXT4_SUPER_MAGIC | libc::BTRFS_SUPER_MAGIC | XFS | F2FS => Kind::Disk,
        _ => Kind::Other,
    })
}

/// The pages of `size` bytes that are free, and those that the pool may still add (`nr_overcommit_hugepages`).
fn free_huge_pages(size: u64) -> Option<u64> {
    let pool = format!("{POOLS}/hugepages-{}kB", size >> 10);
    let number = |name: &str| proc::read(&format!("{pool}/{name}"))?.trim().parse::<u64>().ok();
    let surplus = number("nr_overcommit_hugepages")?.saturating_sub(number("surplus_hugepages")?);
    number("free_hugepages")?.checked_add(surplus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_systems_of_this_machine_are_told_apart() {
        assert_eq!(of(Path::new("/proc/self/status")), Some(Kind::Other));
        assert!(matches!(of(Path::new("/dev/shm")), Some(Kind::Tmpfs(_))));
        assert_eq!(of(Path::new("/nothing/is/here")), None);
        assert_eq!(of(Path::new("/dev/shm\0")), None);
    }
}
