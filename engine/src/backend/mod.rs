//! What can hold mappings: the kernel's type1 driver, or an executable model of it.

use std::fmt;

use crate::addr::{IovaRange, PageSizes};
use crate::error::{Errno, Result};
pub use crate::region::Mapping;

pub mod sim;
pub mod type1;

/// What a backend can hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// IOMMU page sizes.
    pub page_sizes: PageSizes,
    /// IOVAs the IOMMU can translate, ascending; empty if the kernel does not say.
    pub iova_ranges: Vec<IovaRange>,
    /// How many more entries fit (VFIO's `dma_avail`); `None`: no limit is known.
    pub entries: Option<u64>,
}

/// How much memory may be pinned, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memlock {
    /// Locked now (VmLck).
    pub locked: u64,
    /// RLIMIT_MEMLOCK; `None` where nothing is enforced (no limit, or CAP_IPC_LOCK).
    pub limit: Option<u64>,
}

/// When memory is faulted in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Populate {
    /// Not ahead of its map call.
    Never,
    /// All of it before the first map call.
    First,
    /// Each entry before its own map call, later ones meanwhile.
    Meanwhile,
}

/// Something that holds entries for a device. Every call is all or nothing.
pub trait Backend: Send + Sync + fmt::Debug {
    /// For messages.
    fn name(&self) -> &'static str;

    /// What it can hold, now. Asked at open and before a transaction is refused because of it.
    fn limits(&self) -> Result<Limits>;

    /// How much may be pinned, now.
    fn memlock(&self) -> Memlock;

    /// Whether and when faulting memory in before it is mapped pays.
    fn populates(&self) -> Populate;

    /// Maps one entry, or nothing.
    fn map(&self, mapping: &Mapping) -> std::result::Result<(), Errno>;

    /// Unmaps every entry wholly inside `range` and answers how many bytes those were. A range that cuts an entry is an
    /// error and unmaps nothing.
    fn unmap(&self, range: IovaRange) -> std::result::Result<u64, Errno>;
}
