//! What was done, in numbers.

use crate::addr::Superpages;

/// Totals since open; fields that say "now" are the state after the last commit. Bytes, nanoseconds and counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Commits with something to do.
    pub commits: u64,
    /// Commits of transactions that touched nothing.
    pub empty_commits: u64,
    /// Commits that failed.
    pub failed_commits: u64,
    /// Regions wanted now.
    pub regions: u64,
    /// Bytes wanted now.
    pub wanted_bytes: u64,
    /// Entries the kernel holds now.
    pub entries: u64,
    /// Bytes mapped now.
    pub mapped_bytes: u64,
    /// Map calls that succeeded.
    pub map_calls: u64,
    /// Bytes they mapped.
    pub map_bytes: u64,
    /// Unmap calls that succeeded.
    pub unmap_calls: u64,
    /// Bytes they unmapped.
    pub unmap_bytes: u64,
    /// Entries that transactions touched and left in place.
    pub kept_entries: u64,
    /// Their bytes.
    pub kept_bytes: u64,
    /// Time spent comparing.
    pub plan_ns: u64,
    /// Time commits gave to faulting memory in, whatever the number of threads. Map calls made meanwhile are not in it.
    pub populate_ns: u64,
    /// Time spent in map calls; of calls made at the same time, each counts.
    pub map_ns: u64,
    /// Time spent in unmap calls; of calls made at the same time, each counts.
    pub unmap_ns: u64,
    /// madvise calls that faulted memory in.
    pub populate_calls: u64,
    /// Bytes they faulted in.
    pub populate_bytes: u64,
    /// Bytes that were present before and passed over.
    pub populate_present: u64,
    /// Bytes about to be mapped that huge pages back (THP or hugetlbfs).
    pub populate_huge: u64,
    /// Bytes about to be mapped that base pages back.
    pub populate_small: u64,
    /// Bytes left to the map call because faulting in did not work.
    pub populate_skipped: u64,
    /// Chunks that answered EINVAL: a kernel before 5.14, or a special mapping.
    pub populate_einval: u64,
    /// Chunks that answered EFAULT.
    pub populate_efault: u64,
    /// Chunks that answered ENOMEM.
    pub populate_enomem: u64,
    /// Chunks that answered EHWPOISON.
    pub populate_ehwpoison: u64,
    /// Chunks that answered anything else.
    pub populate_other: u64,
    /// Worker threads that could not be started.
    pub thread_fallbacks: u64,
    /// Most threads a commit faulted memory in with, the caller's included.
    pub threads_peak: u64,
    /// Device regions the kernel refused.
    pub device_failures: u64,
    /// Commits that were taken back.
    pub undo_runs: u64,
    /// Commits refused before anything was touched.
    pub preflight_refusals: u64,
    /// Bytes now mapped whose IOVA and host address agree modulo 2 MiB.
    pub congruent_2m_bytes: u64,
    /// Bytes now mapped whose IOVA and host address agree modulo 1 GiB.
    pub congruent_1g_bytes: u64,
    /// Bytes that commits unmapped and mapped again just so, because their entry held something that had to go: for a moment
    /// no device could reach them.
    pub remapped_bytes: u64,
    /// The longest unmap call: about as long as others had to wait for the container.
    pub unmap_longest_ns: u64,
    /// What large pages the IOMMU has now.
    pub superpages: Superpages,
    /// Bytes given back to the system.
    pub discard_bytes: u64,
    /// Time spent on that.
    pub discard_ns: u64,
}
