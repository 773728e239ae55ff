//! How much a file system of memory can still hold.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::path::Path;

use super::proc;

/// Where the kernel shows the pools of huge pages, one folder for each size.
const POOLS: &str = "/sys/kernel/mm/hugepages";

/// What a file system can hold, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Space {
    pub size: u64,
    pub free: u64,
}

/// A kind of file system, as far as it matters for pinning its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// tmpfs; `None`: without a limit.
    Tmpfs(Option<Space>),
    /// hugetlbfs, with its pool of huge pages.
    Hugetlbfs(Space),
    /// A file system on a disk or a server, which writes the pages of shared mappings back. With its name.
    Disk(&'static str),
    /// Any other.
    Other,
}

/// File systems that write the pages of shared mappings back, by the numbers in include/uapi/linux/magic.h and fs/.
const DISKS: [(i64, &str); 10] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0xf2f5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
    (0x2fc1_2fc1, "zfs"),
    (0x6573_5546, "fuse"),
    (0x6969, "nfs"),
    (0x00c3_6400, "ceph"),
    (0x0102_1997, "9p"),
];

/// The file system that contains `path`; `None` if the kernel does not say.
pub(crate) fn of(path: &Path) -> Option<Kind> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
    let mut system = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path ends with a zero, and the struct is the one that the call fills.
    let asked = unsafe { libc::statfs(path.as_ptr(), system.as_mut_ptr()) };
    // SAFETY: the call succeeded, so it has filled the struct.
    let system = (asked == 0).then(|| unsafe { system.assume_init() })?;
    let block = u64::try_from(system.f_bsize).ok()?;
    let magic = magic(&system);
    Some(match magic {
        libc::TMPFS_MAGIC => {
            let bytes = |blocks: u64| blocks.saturating_mul(block);
            let space = Space { size: bytes(system.f_blocks), free: bytes(system.f_bavail) };
            Kind::Tmpfs((system.f_blocks > 0).then_some(space))
        }
        libc::HUGETLBFS_MAGIC => Kind::Hugetlbfs(pool(block)?),
        _ => DISKS
            .iter()
            .find(|(number, _)| *number == magic)
            .map_or(Kind::Other, |(_, name)| Kind::Disk(name)),
    })
}

/// The number of the kind of file system. The type of the field differs between C libraries.
#[allow(
    clippy::unnecessary_cast,
    clippy::cast_possible_wrap,
    reason = "numbers of file systems have 32 bits"
)]
pub(super) fn magic(system: &libc::statfs) -> libc::c_long {
    system.f_type as libc::c_long
}

/// The pool of huge pages of `page` bytes, with the pages that it may still add (`nr_overcommit_hugepages`).
pub(crate) fn pool(page: u64) -> Option<Space> {
    let pool = format!("{POOLS}/hugepages-{}kB", page >> 10);
    let number = |name: &str| proc::read(&format!("{pool}/{name}"))?.trim().parse::<u64>().ok();
    let surplus = number("nr_overcommit_hugepages")?.saturating_sub(number("surplus_hugepages")?);
    let bytes = |pages: u64| pages.checked_add(surplus)?.checked_mul(page);
    Some(Space { size: bytes(number("nr_hugepages")?)?, free: bytes(number("free_hugepages")?)? })
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
        assert_eq!(pool(4096), None, "no huge page");
    }
}
