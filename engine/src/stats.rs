//! Counters of an engine.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::addr::Superpages;

/// Declares [`Stats`], the same fields as [`Counters`], and a macro that passes the names of its fields to another macro.
macro_rules! stats {
    (($dollar:tt) $($(#[$doc:meta])* $name:ident: $type:ty,)+) => {
        /// Totals since open, except that fields marked "now" are the state after the last commit. Units are bytes,
        /// nanoseconds and counts.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: $type,)+
        }

        /// The counters behind [`Stats`], which any thread can read at any time, without a lock.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)+
        }

        impl Counters {
            /// The current values. While another thread counts a commit, it may be counted in part, but never with
            /// more bytes unmapped than mapped.
            pub fn read(&self) -> Stats {
                // What is unmapped was mapped and counted before, so it is read first.
                let (unmap_calls, unmap_bytes) = (self.unmap_calls.get(), self.unmap_bytes.get());
                let all = Stats { $($name: Value::from_number(self.$name.get()),)+ };
                Stats { unmap_calls, unmap_bytes, ..all }
            }
        }

        /// Calls a macro with the names of all fields of `Stats`, so that the macro cannot leave one out.
        #[macro_export]
        macro_rules! with_each_stat {
            ($dollar callback:ident) => { $dollar callback! { $($name)+ } };
        }
    };
}

/// A number that one thread at a time changes: the one that holds the lock of the engine's state. A thread that reads
/// its value also sees what was counted before.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The current value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }

    /// Adds to the value. Not atomic: a locked instruction for each counter would cost more than a map of one page
    /// may cost in all.
    pub fn add(&self, more: u64) {
        self.set(self.get().wrapping_add(more));
    }
}

/// A field of [`Stats`], which is stored as a number.
trait Value {
    fn from_number(number: u64) -> Self;
}

impl Value for u64 {
    fn from_number(number: u64) -> Self {
        number
    }
}

impl Value for Superpages {
    fn from_number(number: u64) -> Self {
        let all = [Self::Unknown, Self::Coarse, Self::Fine];
        all.into_iter().find(|style| *style as u64 == number).unwrap_or_default()
    }
}

stats! {
    ($)
    /// Successful commits of transactions that touched something.
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
    /// Bytes that the map calls mapped.
    map_bytes: u64,
    /// Unmap calls that succeeded.
    unmap_calls: u64,
    /// Bytes that the unmap calls unmapped.
    unmap_bytes: u64,
    /// Entries that transactions touched and that stayed mapped.
    kept_entries: u64,
    /// Bytes of the kept entries.
    kept_bytes: u64,
    /// Time spent on planning.
    plan_ns: u64,
    /// Time that commits spent on faulting memory in, whatever the number of threads. Concurrent map calls are not
    /// included.
    populate_ns: u64,
    /// Time spent in map calls. Concurrent calls each count in full.
    map_ns: u64,
    /// Time spent in unmap calls. Concurrent calls each count in full.
    unmap_ns: u64,
    /// Calls that faulted memory in: madvise, or buffers of io_uring.
    populate_calls: u64,
    /// Bytes that those calls faulted in.
    populate_bytes: u64,
    /// Bytes that were already present and skipped.
    populate_present: u64,
    /// Bytes backed by huge pages (THP or hugetlbfs) just before they were mapped.
    populate_huge: u64,
    /// Bytes backed by base pages just before they were mapped.
    populate_small: u64,
    /// Bytes left to the map call because faulting in failed.
    populate_skipped: u64,
    /// Chunks that failed with EINVAL: a special mapping.
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
    /// Maximum number of threads that a commit used to fault memory in, including the caller's.
    threads_peak: u64,
    /// Device regions that the kernel refused.
    device_failures: u64,
    /// Commits that were rolled back.
    rollbacks: u64,
    /// Commits refused because of a limit: before any call, or after ENOMEM.
    preflight_refusals: u64,
    /// Bytes mapped now with an IOVA and a host address that agree modulo 2 MiB.
    congruent_2m_bytes: u64,
    /// Bytes mapped now with an IOVA and a host address that agree modulo 1 GiB.
    congruent_1g_bytes: u64,
    /// Bytes that commits unmapped and mapped again identically, because another part of their entry was unmapped.
    /// For a short time no device could access them.
    remapped_bytes: u64,
    /// The longest unmap call: about as long as other threads had to wait for the container.
    max_unmap_ns: u64,
    /// The IOMMU's superpage sizes now.
    superpages: Superpages,
    /// Bytes discarded.
    discard_bytes: u64,
    /// Time spent on discarding.
    discard_ns: u64,
}
