//! What a backend can hold, and how much memory may be pinned.

use crate::addr::{IovaRange, PageSizes};

/// What a backend can hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// IOMMU page sizes.
    pub page_sizes: PageSizes,
    /// The IOVAs the IOMMU can translate, ascending; empty if the kernel does not report them.
    pub iova_ranges: Vec<IovaRange>,
    /// How many more entries fit (VFIO's `dma_avail`); `None`: there is no limit, or it is not known.
    pub entries: Option<u64>,
}

/// The pinned memory that the kernel compares with RLIMIT_MEMLOCK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemlockScope {
    /// That of this process, which VmLck shows.
    Process,
    /// That of all processes of this user, which no file shows.
    User,
}

/// How much memory may be pinned, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memlock {
    /// Locked now, as far as it is known: VmLck, or with [`MemlockScope::User`] what this backend has mapped.
    pub locked: u64,
    /// RLIMIT_MEMLOCK; `None` where nothing is enforced (no limit, or CAP_IPC_LOCK).
    pub limit: Option<u64>,
    /// What the kernel compares with the limit.
    pub scope: MemlockScope,
}
