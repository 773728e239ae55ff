//! What an engine tells about itself.

use std::ops::RangeInclusive;
use std::time::Duration;

use vfio_fast_engine::execute::Refusal;
use vfio_fast_engine::limits::MemlockScope;
use vfio_fast_engine::transaction::{self, Phase};

use crate::range::inclusive;

pub use vfio_fast_engine::addr::Superpages;
pub use vfio_fast_engine::stats::Stats;

/// What one commit has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// Map calls of the kernel.
    pub map_calls: u64,
    /// Bytes that they mapped.
    pub map_bytes: u64,
    /// Unmap calls of the kernel.
    pub unmap_calls: u64,
    /// Bytes that they unmapped.
    pub unmap_bytes: u64,
    /// Mappings of the kernel that the transaction touched and that stayed.
    pub kept_entries: u64,
    /// Bytes of them.
    pub kept_bytes: u64,
    /// Bytes that were unmapped and mapped again as they were, because another part of their mapping was unmapped.
    pub remapped_bytes: u64,
    /// Wall time.
    pub duration: Duration,
    /// Device memory that the kernel does not map: no device gets to it by peer-to-peer DMA.
    pub refused: Vec<Refused>,
}

impl From<transaction::Outcome> for Outcome {
    fn from(outcome: transaction::Outcome) -> Self {
        let transaction::Outcome { executed, kept_entries, kept_bytes, remapped_bytes, duration } = outcome;
        Self {
            map_calls: executed.map_calls,
            map_bytes: executed.map_bytes,
            unmap_calls: executed.unmap_calls,
            unmap_bytes: executed.unmap_bytes,
            kept_entries,
            kept_bytes,
            remapped_bytes,
            duration,
            refused: executed.refusals.iter().map(Refused::from).collect(),
        }
    }
}

/// A region of device memory that the kernel does not map.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// The device addresses of the region.
    pub iova: RangeInclusive<u64>,
    /// The kernel's errno.
    pub errno: i32,
}

impl From<&Refusal> for Refused {
    fn from(refusal: &Refusal) -> Self {
        Self { iova: inclusive(refusal.region), errno: refusal.errno.0 }
    }
}

/// The settings, limits and current state of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// The page sizes of the IOMMU: bit `n` is set for pages of 2^n bytes.
    pub page_sizes: u64,
    /// The device addresses that the IOMMU translates, ascending; empty if the kernel does not say.
    pub iova_ranges: Vec<RangeInclusive<u64>>,
    /// The number of mappings that still fit (VFIO's `dma_avail`); `None`: no limit, or not known.
    pub free_entries: Option<u64>,
    /// Bytes of locked memory, as far as known.
    pub memlock_used: u64,
    /// `RLIMIT_MEMLOCK` in bytes; `None`: not enforced.
    pub memlock_limit: Option<u64>,
    /// Whether the kernel compares that limit with what all processes of the user have pinned, which no file shows.
    pub memlock_per_user: bool,
    /// Bytes of the largest mapping.
    pub entry_size: u64,
    /// Maximum number of threads of a commit.
    pub threads: usize,
    /// Whether these threads map and unmap at the same time, or only fault memory in.
    pub parallel: bool,
    /// Whether a transaction is open.
    pub in_transaction: bool,
    /// Whether the engine is poisoned: the kernel has contradicted its record, or a call has panicked. It can only be
    /// closed then.
    pub poisoned: bool,
    /// Mappings that are left although they are not wanted as a whole, because the kernel refused to unmap them.
    pub leftover_entries: u64,
    /// Bytes that are wanted and not mapped, because they could not be mapped again after a failure.
    pub missing_bytes: u64,
}

impl From<transaction::Info> for Info {
    fn from(info: transaction::Info) -> Self {
        Self {
            page_sizes: info.limits.page_sizes.bitmap(),
            iova_ranges: info.limits.iova_ranges.into_iter().map(inclusive).collect(),
            free_entries: info.limits.entries,
            memlock_used: info.memlock.locked,
            memlock_limit: info.memlock.limit,
            memlock_per_user: info.memlock.scope == MemlockScope::User,
            entry_size: info.entry_size,
            threads: info.threads,
            parallel: info.parallel,
            in_transaction: info.in_transaction,
            poisoned: info.poisoned,
            leftover_entries: info.leftover_entries,
            missing_bytes: info.missing_bytes,
        }
    }
}

/// What the job in the background is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgressState {
    /// There was none.
    None,
    /// It works, or waits for another call.
    Running,
    /// It has mapped everything.
    Done,
    /// It could not map everything; [`Engine::wait`](crate::Engine::wait) returns why.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// How far the job in the background is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// What it is doing.
    pub state: ProgressState,
    /// Bytes that it has mapped and has to map.
    pub wanted_bytes: u64,
    /// Bytes of these that were found present or faulted in.
    pub present_bytes: u64,
    /// Bytes of these that it has mapped.
    pub mapped_bytes: u64,
    /// The number of threads that work for it.
    pub threads: u64,
    /// The time since it began, or from its beginning to its end.
    pub elapsed: Duration,
    /// An estimate of the time that is left; `None`: not known yet.
    pub left: Option<Duration>,
}

impl From<transaction::Progress> for Progress {
    fn from(progress: transaction::Progress) -> Self {
        let state = match progress.phase {
            Phase::None => ProgressState::None,
            Phase::Running => ProgressState::Running,
            Phase::Done => ProgressState::Done,
            Phase::Failed => ProgressState::Failed,
            Phase::Cancelled => ProgressState::Cancelled,
        };
        Self {
            state,
            wanted_bytes: progress.wanted_bytes,
            present_bytes: progress.present_bytes,
            mapped_bytes: progress.mapped_bytes,
            threads: progress.threads,
            elapsed: Duration::from_nanos(progress.elapsed_ns),
            left: progress.left_ns.map(Duration::from_nanos),
        }
    }
}
