//! A kernel that accepts every call at once, to measure and to count what the engine does beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vfio_fast_engine::addr::{IovaRange, PageSizes};
use vfio_fast_engine::backend::{Backend, Capabilities, DirtyTracking, Mapping, PopulatePolicy};
use vfio_fast_engine::error::KernelResult;
use vfio_fast_engine::limits::{Limits, Memlock, MemlockScope};
use vfio_fast_engine::object::Object;
use vfio_fast_engine::{Errno, Error};

use crate::range;

/// The limit on locked memory that [`Accepting`] reports, all of which is in use.
const MEMLOCK: u64 = 8 << 12;

/// Keeps no mapping and makes no system call. Faulting in ahead would pay with it, and it has a limit on locked
/// memory. It cannot know which part of a range was mapped, so it is not exclusive: calls then cover no gap.
#[derive(Debug, Default)]
pub struct Accepting {
    /// What map calls return instead of success.
    pub refuse: Option<Errno>,
    /// How often the limit on locked memory was read.
    pub memlock_reads: Arc<AtomicU64>,
}

impl Backend for Accepting {
    fn name(&self) -> &'static str {
        "accepting"
    }

    fn limits(&self) -> Result<Limits, Error> {
        let iova_ranges = vec![range(0, 0xfee0_0000), range(0xfef0_0000, u64::MAX - 0xfef0_0000)];
        let (page_sizes, entries) = (PageSizes::from_bitmap(0x4020_1000), Some(1 << 40));
        Ok(Limits { page_sizes, iova_ranges, entries, entries_at_open: entries })
    }

    fn memlock(&self) -> Memlock {
        self.memlock_reads.fetch_add(1, Ordering::Relaxed);
        Memlock { locked: MEMLOCK, limit: Some(MEMLOCK), scope: MemlockScope::Process }
    }

    fn capabilities(&self) -> Capabilities {
        let populate = PopulatePolicy::Upfront;
        Capabilities { populate, parallel: false, objects: false, exclusive: false }
    }

    fn dirty_tracking(&self) -> Option<&dyn DirtyTracking> {
        Some(self)
    }

    fn map(&self, _: &Mapping, _: Option<Object<'_>>) -> KernelResult<()> {
        self.refuse.map_or(Ok(()), Err)
    }

    fn unmap(&self, range: IovaRange) -> KernelResult<u64> {
        Ok(range.length())
    }

    fn unmap_all(&self) -> KernelResult<u64> {
        Err(Errno::EINVAL)
    }
}

impl DirtyTracking for Accepting {
    fn max_bytes(&self) -> u64 {
        1 << 40
    }

    fn track_dirty(&self, _: bool) -> KernelResult<()> {
        Ok(())
    }

    fn read_dirty(&self, _: IovaRange, bitmap: &mut [u64]) -> KernelResult<()> {
        bitmap.fill(u64::MAX);
        Ok(())
    }

    fn unmap_dirty(&self, range: IovaRange, bitmap: &mut [u64]) -> KernelResult<u64> {
        bitmap.fill(u64::MAX);
        Ok(range.length())
    }
}
