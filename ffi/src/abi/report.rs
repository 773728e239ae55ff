//! Failures, statistics and properties of a handle.

use super::constants::VFIO_FAST_IOVA_LIST;
use super::size::sized32;

/// The last failure of the calling thread, in numbers. vfio_fast_last_error() describes it in words.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_failure {
    /// sizeof(struct vfio_fast_failure), set by the caller and not changed
    pub size: u32,
    /// The operation that failed, VFIO_FAST_OP_*.
    pub op: u32,
    /// The negative errno that the call returned. 0: no call of this thread has failed.
    pub error: i32,
    /// Always 0.
    pub reserved: u32,
    /// First device address of the region or kernel entry that the failure is about. 0 with length 0: none.
    pub iova: u64,
    /// Its length in bytes. 0: the failure is about none, or about the whole address space of 2^64 bytes. -ENOSPC before
    /// a map call is about none: all entries of the container are the reason. The message says what holds them.
    pub length: u64,
    /// Host virtual address of its first byte. 0: none or unknown.
    pub hva: u64,
    /// The value that a limit would have to allow: the total of locked bytes (RLIMIT_MEMLOCK), the number of entries to
    /// add (dma_avail), or the bytes that a file system would have to hold. 0: no limit was exceeded.
    pub needed: u64,
    /// The value that this limit allows, in the same unit.
    pub available: u64,
}

/// Totals since the handle was opened: calls, bytes and nanoseconds. Fields described with "now" hold the present
/// state instead.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_stats {
    /// sizeof(struct vfio_fast_stats), set by the caller and not changed
    pub size: u32,
    /// Always 0.
    pub reserved: u32,
    /// Successful commits that touched something, including single calls outside a transaction.
    pub commits: u64,
    /// Commits that touched nothing, including single calls outside a transaction.
    pub empty_commits: u64,
    /// Commits that failed.
    pub failed_commits: u64,
    /// Regions wanted now.
    pub regions: u64,
    /// Bytes wanted now.
    pub wanted_bytes: u64,
    /// Kernel entries now.
    pub entries: u64,
    /// Bytes mapped now.
    pub mapped_bytes: u64,
    /// Map calls that succeeded.
    pub map_calls: u64,
    /// Bytes that these calls mapped.
    pub map_bytes: u64,
    /// Unmap calls that succeeded.
    pub unmap_calls: u64,
    /// Bytes that these calls unmapped.
    pub unmap_bytes: u64,
    /// Kernel entries that transactions touched but left in place.
    pub kept_entries: u64,
    /// Bytes in these entries.
    pub kept_bytes: u64,
    /// Nanoseconds spent comparing what is wanted with what is mapped.
    pub plan_ns: u64,
    /// Nanoseconds of wall time that the threads that called commits spent faulting memory in, whatever the number of
    /// other threads. This excludes map calls that they made in between. Without VFIO_FAST_INFO_PARALLEL, the sum of
    /// populate_ns and map_ns is the time that mapping took.
    pub populate_ns: u64,
    /// Nanoseconds spent in map calls. Concurrent calls count separately, so the sum can exceed the duration of the
    /// commits.
    pub map_ns: u64,
    /// Nanoseconds spent in unmap calls. Concurrent calls count separately, so the sum can exceed the duration of the
    /// commits.
    pub unmap_ns: u64,
    /// Calls that faulted memory in (madvise, or buffers of io_uring).
    pub populate_calls: u64,
    /// Bytes that these calls faulted in.
    pub populate_bytes: u64,
    /// Bytes that were already present and therefore skipped.
    pub populate_present: u64,
    /// Bytes of the memory that was faulted in or found present that are in huge pages (transparent or hugetlbfs).
    pub populate_huge: u64,
    /// Bytes of the same memory that are in base pages. Mapping them takes about ten times as long. If the
    /// configuration of the host prevents huge pages, the log says so. populate_huge and populate_small are 0 if the
    /// kernel cannot report them (before Linux 6.7).
    pub populate_small: u64,
    /// Bytes left to the map call because faulting them in did not work. The next five fields count the chunks that
    /// failed, by errno.
    pub populate_skipped: u64,
    /// EINVAL: the memory cannot be faulted in.
    pub populate_einval: u64,
    /// EFAULT
    pub populate_efault: u64,
    /// ENOMEM
    pub populate_enomem: u64,
    /// EHWPOISON
    pub populate_ehwpoison: u64,
    /// Any other errno.
    pub populate_other: u64,
    /// Worker threads that could not be started. The other threads did their work.
    pub thread_start_failures: u64,
    /// Maximum number of threads that faulted memory in for one commit, including the caller's.
    pub threads_peak: u64,
    /// Device regions that the kernel refused to map.
    pub device_failures: u64,
    /// Failed commits that were rolled back.
    pub rollbacks: u64,
    /// Commits refused because a limit was too low: before any map or unmap call, or, if a commit maps less than 4 MiB,
    /// after the kernel has refused one with ENOMEM.
    pub preflight_refusals: u64,
    /// Bytes mapped now with device and host addresses equal modulo 2 MiB, so that 2 MiB pages can map them.
    pub congruent_2m_bytes: u64,
    /// Bytes mapped now with device and host addresses equal modulo 1 GiB, so that 1 GiB pages can map them.
    pub congruent_1g_bytes: u64,
    /// Bytes that were unmapped and mapped again unchanged because another part of their kernel entry had to be
    /// removed. No device could access them in between.
    pub remapped_bytes: u64,
    /// Nanoseconds of the longest unmap call: about the longest time that other users of the container had to wait.
    pub max_unmap_ns: u64,
    /// Large pages of the IOMMU now, VFIO_FAST_SUPERPAGES_*.
    pub superpages: u64,
    /// Bytes returned to the system by vfio_fast_discard().
    pub discard_bytes: u64,
    /// Nanoseconds of wall time spent in vfio_fast_discard().
    pub discard_ns: u64,
}

/// A range of device addresses that the IOMMU translates.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
#[repr(C)]
pub struct vfio_fast_iova_range {
    /// First address.
    pub first: u64,
    /// Last address (inclusive).
    pub last: u64,
}

/// The state of a handle and the properties of its IOMMU.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_info {
    /// sizeof(struct vfio_fast_info), set by the caller and not changed
    pub size: u32,
    /// VFIO_FAST_INFO_*
    pub flags: u32,
    /// VFIO_FAST_BACKEND_*, from the configuration.
    pub backend: u32,
    /// Maximum number of threads that work during a commit.
    pub threads: u32,
    /// Page sizes of the IOMMU: bit n is set if it has pages of 2^n bytes. The lowest set bit is the smallest IOMMU
    /// page, the alignment of every address and length.
    pub iova_pgsizes: u64,
    /// Maximum size of a kernel entry in bytes, as configured. A commit uses a larger size if the container has too few
    /// entries left.
    pub entry_size: u64,
    /// Number of entries that the kernel would still accept. UINT64_MAX: no limit.
    pub dma_avail: u64,
    /// Lowest valid device address.
    pub iova_first: u64,
    /// Highest valid device address (inclusive).
    pub iova_last: u64,
    /// Number of ranges of valid device addresses between iova_first and iova_last (see iova_list). 0: the kernel does
    /// not report them, and all addresses are assumed to be valid.
    pub iova_ranges: u64,
    /// Bytes that this process may lock. UINT64_MAX: no limit.
    pub memlock_limit: u64,
    /// Bytes locked now by this process or, with VFIO_FAST_INFO_MEMLOCK_PER_USER, mapped by this handle.
    pub memlock_used: u64,
    /// Maximum number of bytes that one unmap call removes, unless a single entry is larger.
    pub max_unmap_bytes: u64,
    /// Maximum number of entries that one unmap call removes, from the configuration. 0: it depends on the time of the
    /// calls.
    pub max_unmap_entries: u32,
    /// Large pages of the IOMMU now, VFIO_FAST_SUPERPAGES_*.
    pub superpages: u32,
    /// The ranges of valid device addresses, ascending: the first min(iova_ranges, VFIO_FAST_IOVA_LIST) elements, then
    /// zeros. RAM outside them cannot be mapped. They change when devices join or leave the container.
    pub iova_list: [vfio_fast_iova_range; VFIO_FAST_IOVA_LIST as usize],
    /// Number of ranges that did not fit into iova_list, all above its last one. Use only what is listed, or
    /// VFIO_IOMMU_GET_INFO or IOMMU_IOAS_IOVA_RANGES for all of them.
    pub iova_ranges_left_out: u64,
    /// Kernel entries that are mapped now although they are not wanted as a whole, because they could not be unmapped
    /// (see Failed commits). To try again, unmap their range again; until then keep the memory in place.
    pub leftover_entries: u64,
    /// Bytes of RAM that are wanted now and not mapped, because they could not be mapped again after a failure (see
    /// Failed commits). No device can access them.
    pub missing_bytes: u64,
}

/// How far a job in the background is.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_progress {
    /// sizeof(struct vfio_fast_progress), set by the caller and not changed
    pub size: u32,
    /// VFIO_FAST_JOB_*
    pub state: u32,
    /// Bytes that the job has mapped and has still to map. Less after something was unmapped or refused.
    pub wanted_bytes: u64,
    /// Bytes of these that are in memory as far as the job has looked. Can go down when the job was paused.
    pub present_bytes: u64,
    /// Bytes of these that the job has mapped.
    pub mapped_bytes: u64,
    /// Number of threads that work for the job, or 0.
    pub threads: u64,
    /// Nanoseconds since the job began, or from its beginning to its end.
    pub elapsed_ns: u64,
    /// An estimate of the nanoseconds that are left. UINT64_MAX: not known yet.
    pub left_ns: u64,
}

sized32!(vfio_fast_progress, 56);
sized32!(vfio_fast_failure, 56);
sized32!(vfio_fast_stats, 288);
sized32!(vfio_fast_info, 80);
