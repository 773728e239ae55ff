//! The limits of a backend, and of pinned memory.

use crate::addr::{IovaRange, PageSizes};

/// The limits of a backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// IOMMU page sizes.
    pub page_sizes: PageSizes,
    /// The IOVAs the IOMMU can translate, ascending; empty if the kernel does not report them.
    pub iova_ranges: Vec<IovaRange>,
    /// The number of entries that still fit (VFIO's `dma_avail`); `None` if there is no limit or it is unknown.
    pub entries: Option<u64>,
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
