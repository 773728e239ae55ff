//! The limits of a backend, and of pinned memory.

use std::fmt;

use crate::addr::{Bytes, IovaRange, PageSizes};

/// The limits of a backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// IOMMU page sizes.
    pub page_sizes: PageSizes,
    /// The IOVAs the IOMMU can translate, ascending; empty if the kernel does not report them.
    pub iova_ranges: Vec<IovaRange>,
    /// The number of entries that still fit (VFIO's `dma_avail`); `None` if there is no limit or it is unknown.
    pub entries: Option<u64>,
    /// The number of entries that fitted when the backend was opened.
    pub entries_at_open: Option<u64>,
}

/// The pinned memory that the kernel compares with RLIMIT_MEMLOCK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemlockScope {
    /// The memory of this process, which VmLck shows.
    Process,
    /// The memory of all processes of this user, which no file shows.
    User,
}

/// The usage and the limit of pinned memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memlock {
    /// Bytes locked now, as far as known: VmLck, or with [`MemlockScope::User`] the bytes that this backend has
    /// mapped.
    pub locked: u64,
    /// RLIMIT_MEMLOCK; `None` if it is not enforced (no limit, or CAP_IPC_LOCK).
    pub limit: Option<u64>,
    /// The memory that the kernel compares with the limit.
    pub scope: MemlockScope,
}

/// What processes of a user have pinned (VmPin), as far as /proc shows it: through iommufd, as buffers of io_uring, or
/// for RDMA. In bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UserCharges {
    /// The number of the user.
    pub user: u32,
    /// Pinned by this process.
    pub own: u64,
    /// Pinned by other processes of the user.
    pub others: u64,
    /// The number of these processes.
    pub processes: u64,
    /// The process that has pinned most of it: its number, name and bytes.
    pub largest: Option<(u32, String, u64)>,
}

impl fmt::Display for UserCharges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, own, others, processes, largest } = self;
        write!(
            f,
            "the {} of this process and the {} of {processes} other processes of user {user}",
            Bytes(*own),
            Bytes(*others)
        )?;
        match largest {
            Some((process, name, bytes)) => {
                write!(f, ", most in {name}, process {process}: {}", Bytes(*bytes))
            }
            None => Ok(()),
        }
    }
}
