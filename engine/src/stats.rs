//! What was done, in numbers.

use crate::addr::Superpages;

/// Declares [`Stats`], and the macro that hands the names of its fields to another macro.
macro_rules! stats {
    (($dollar:tt) $($(#[$doc:meta])* $name:ident: $type:ty,)+) => {
        /// Totals since open; fields marked "now" are the state after the last commit. Bytes, nanoseconds and counts.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Stats {
            $($(#[$doc])* pub $name: $type,)+
        }

        /// Calls a macro with the name of each field of `Stats`, so that what is made of them leaves none out.
        #[macro_export]
        macro_rules! with_each_stat {
            ($dollar callback:ident) => { $dollar callback! { $($name)+ } };
        }
    };
}

stats! {
    ($)
    /// Commits with something to do.
    commits: u64,
    /// Commits of transactions that touched nothing.
    empty_commits: u64,
    /// Commits that failed.
    failed_commits: u64,
    /// Regions wanted now.
    regions: u64,
    /// Bytes wanted now.
    wanted_bytes: u64,
    /// Entries the kernel holds now.
    entries: u64,
    /// Bytes mapped now.
    mapped_bytes: u64,
    /// Map calls that succeeded.
    map_calls: u64,
    /// Bytes they mapped.
    map_bytes: u64,
    /// Unmap calls that succeeded.
    unmap_calls: u64,
    /// Bytes they unmapped.
    unmap_bytes: u64,
    /// Entries that transactions touched and left in place.
    kept_entries: u64,
    /// Their bytes.
    kept_bytes: u64,
    /// Time spent comparing.
    plan_ns: u64,
    /// Time commits gave to faulting memory in, whatever the number of threads. Concurrent map calls are not included.
    populate_ns: u64,
    /// Time spent in map calls; of calls made at the same time, each counts.
    map_ns: u64,
    /// Time spent in unmap calls; of calls made at the same time, each counts.
    unmap_ns: u64,
    /// madvise calls that faulted memory in.
    populate_calls: u64,
    /// Bytes they faulted in.
    populate_bytes: u64,
    /// Bytes that were present before and passed over.
    populate_present: u64,
    /// Bytes about to be mapped that huge pages back (THP or hugetlbfs).
    populate_huge: u64,
    /// Bytes about to be mapped that base pages back.
    populate_small: u64,
    /// Bytes left to the map call because faulting in did not work.
    populate_skipped: u64,
    /// Chunks that failed with EINVAL: a kernel before 5.14, or a special mapping.
    populate_einval: u64,
    /// Chunks that failed with EFAULT.
    populate_efault: u64,
    /// Chunks that failed with ENOMEM.
    populate_enomem: u64,
    /// Chunks that failed with EHWPOISON.
    populate_ehwpoison: u64,
    /// Chunks that failed with any other errno.
    populate_other: u64,
    /// Worker threads that could not be started.
    thread_start_failures: u64,
    /// Most threads a commit faulted memory in with, the caller's included.
    threads_peak: u64,
    /// Device regions the kernel refused.
    device_failures: u64,
    /// Commits that were taken back.
    rollbacks: u64,
    /// Commits refused before anything was touched.
    preflight_refusals: u64,
    /// Bytes now mapped whose IOVA and host address agree modulo 2 MiB.
    congruent_2m_bytes: u64,
    /// Bytes now mapped whose IOVA and host address agree modulo 1 GiB.
    congruent_1g_bytes: u64,
    /// Bytes that commits unmapped and mapped again just so, because their entry held something that had to go: for a
    /// moment no device could reach them.
    remapped_bytes: u64,
    /// The longest unmap call: about as long as others had to wait for the container.
    max_unmap_ns: u64,
    /// What large pages the IOMMU has now.
    superpages: Superpages,
    /// Bytes given back to the system.
    discard_bytes: u64,
    /// Time spent on that.
    discard_ns: u64,
}
