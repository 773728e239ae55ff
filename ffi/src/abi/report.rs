//! What the library tells about itself.

use std::mem::size_of;

use crate::sized::{Sized32, sized32};

/// The last failure on the calling thread, in numbers. The words for it are vfio_fast_last_error().
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_failure {
    /// sizeof(struct vfio_fast_failure), set by the caller and left as it is
    pub size: u32,
    /// What failed, VFIO_FAST_OP_*.
    pub op: u32,
    /// The negative errno that was returned. 0: no call of this thread has failed yet.
    pub error: i32,
    /// Always 0.
    pub reserved: u32,
    /// First device address of the region or kernel entry concerned. 0 with length 0: none.
    pub iova: u64,
    /// Bytes of it. 0: none is concerned, or it is the whole address space of 2^64 bytes.
    pub length: u64,
    /// Host virtual address of its first byte. 0: none or unknown.
    pub hva: u64,
    /// What a limit would have had to allow: bytes locked in all (RLIMIT_MEMLOCK), or entries to add (dma_avail). 0: the
    /// failure was not one of a limit.
    pub needed: u64,
    /// What that limit allows, in the same unit.
    pub available: u64,
}

/// Totals since open, in calls, bytes and nanoseconds; "now" marks what describes this moment instead.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_stats {
    /// sizeof(struct vfio_fast_stats), set by the caller and left as it is
    pub size: u32,
    /// Always 0.
    pub reserved: u32,
    /// Commits of transactions that touched something, single calls outside a transaction included.
    pub commits: u64,
    /// Commits of transactions that touched nothing.
    pub empty_commits: u64,
    /// Commits that failed.
    pub failed_commits: u64,
    /// Regions wanted now.
    pub regions: u64,
    /// Bytes wanted now.
    pub wanted_bytes: u64,
    /// Entries held by the kernel now.
    pub entries: u64,
    /// Bytes mapped now.
    pub mapped_bytes: u64,
    /// Map calls that succeeded.
    pub map_calls: u64,
    /// Bytes mapped by them.
    pub map_bytes: u64,
    /// Unmap calls that succeeded.
    pub unmap_calls: u64,
    /// Bytes unmapped by them.
    pub unmap_bytes: u64,
    /// Entries that transactions touched and left in place.
    pub kept_entries: u64,
    /// Bytes of them.
    pub kept_bytes: u64,
    /// Nanoseconds spent on finding the difference between what is wanted and what is mapped.
    pub plan_ns: u64,
    /// Nanoseconds of wall time that the threads which called commits gave to faulting memory in, whatever the number of
    /// other threads. Map calls they made meanwhile are not in it. Without VFIO_FAST_INFO_PARALLEL the sum with map_ns is
    /// what mapping took.
    pub populate_ns: u64,
    /// Nanoseconds spent in map calls. Of calls made at the same time each counts, so this can be more than the commits
    /// took.
    pub map_ns: u64,
    /// Nanoseconds spent in unmap calls. Of calls made at the same time each counts, so this can be more than the commits
    /// took.
    pub unmap_ns: u64,
    /// madvise calls that faulted memory in.
    pub populate_calls: u64,
    /// Bytes they faulted in.
    pub populate_bytes: u64,
    /// Bytes that were present before, found so and passed over.
    pub populate_present: u64,
    /// Of the memory that was faulted in or found present, bytes in huge pages (transparent or of hugetlbfs).
    pub populate_huge: u64,
    /// Of the same, bytes in base pages. Mapping them takes about ten times as long; the log says what on the host
    /// forbids huge pages, if that is why. Both are 0 where the kernel cannot be asked (before Linux 6.7).
    pub populate_small: u64,
    /// Bytes that were left to the map call because faulting them in did not work. The next five count the chunks this
    /// happened to, by what the kernel answered.
    pub populate_skipped: u64,
    /// EINVAL: a kernel before 5.14, or memory that cannot be faulted in.
    pub populate_einval: u64,
    /// EFAULT
    pub populate_efault: u64,
    /// ENOMEM
    pub populate_enomem: u64,
    /// EHWPOISON
    pub populate_ehwpoison: u64,
    /// Anything else.
    pub populate_other: u64,
    /// Worker threads that could not be started; their work was done by those that could.
    pub thread_fallbacks: u64,
    /// The most threads a commit faulted memory in with, the caller's included.
    pub threads_peak: u64,
    /// Device regions the kernel refused.
    pub device_failures: u64,
    /// Failed commits that were taken back.
    pub undo_runs: u64,
    /// Commits refused before any map or unmap call, because a limit would not have sufficed.
    pub preflight_refusals: u64,
    /// Bytes mapped now whose device address and host address agree modulo 2 MiB, so that a 2 MiB page can serve them.
    pub congruent_2m_bytes: u64,
    /// Bytes mapped now whose device address and host address agree modulo 1 GiB, so that a 1 GiB page can serve them.
    pub congruent_1g_bytes: u64,
    /// Bytes that were unmapped and mapped again just so, because a part of their kernel entry had to go: for a moment no
    /// device could reach them.
    pub remapped_bytes: u64,
    /// Nanoseconds of the longest unmap call: about as long as others may have had to wait for the container.
    pub unmap_longest_ns: u64,
    /// What large pages the IOMMU has now, VFIO_FAST_SUPERPAGES_*.
    pub superpages: u64,
    /// Bytes given back with vfio_fast_discard().
    pub discard_bytes: u64,
    /// Nanoseconds of wall time spent in it.
    pub discard_ns: u64,
}

/// What the handle is and what its IOMMU can do.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_info {
    /// sizeof(struct vfio_fast_info), set by the caller and left as it is
    pub size: u32,
    /// VFIO_FAST_INFO_*
    pub flags: u32,
    /// VFIO_FAST_BACKEND_* of the configuration.
    pub backend: u32,
    /// The most threads that work during a commit.
    pub threads: u32,
    /// Page sizes of the IOMMU: bit n set means pages of 2^n bytes. The lowest bit is the alignment of every address
    /// and length.
    pub iova_pgsizes: u64,
    /// Bytes of the largest kernel entry, as in the configuration or enlarged.
    pub entry_size: u64,
    /// Entries the kernel would still accept. UINT64_MAX: no limit.
    pub dma_avail: u64,
    /// The lowest valid device address.
    pub iova_first: u64,
    /// The highest valid device address (inclusive).
    pub iova_last: u64,
    /// How many ranges of valid device addresses lie between iova_first and iova_last. 0: the kernel does not say, and
    /// all are taken to be valid.
    pub iova_ranges: u64,
    /// Bytes this process may lock. UINT64_MAX: no limit.
    pub memlock_limit: u64,
    /// Bytes locked now: this process's, or with VFIO_FAST_INFO_MEMLOCK_OF_USER what this handle has mapped.
    pub memlock_used: u64,
    /// Bytes that one unmap call takes away at most, unless a single entry is larger.
    pub unmap_bytes: u64,
    /// Entries that one unmap call takes away at most, as in the configuration.
    pub unmap_entries: u32,
    /// What large pages the IOMMU has now, VFIO_FAST_SUPERPAGES_*.
    pub superpages: u32,
}

sized32!(vfio_fast_failure, 56);
sized32!(vfio_fast_stats, 288);
sized32!(vfio_fast_info, 80);
