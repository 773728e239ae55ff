//! Discarding memory on many threads.
//!
//! Taking pages out of the page tables and freeing them is a second per few GiB of base pages, and a process that ends,
//! or frees at once what it had, does all of it on one thread. In pieces it runs on every CPU: madvise needs the
//! address space's lock only for reading.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{CHUNK_BYTES, MIN_PARALLEL_BYTES};
use crate::error::Errno;
use crate::sys::discard::DiscardRange;
use crate::sys::thread;

/// What it took to discard memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Threads that worked, the calling one included.
    pub threads: u64,
    /// Threads that could not be started.
    pub thread_start_failures: u64,
}

/// Discards all of `memory`, on at most `threads` threads, the calling one included. After an error any part of it may
/// be discarded.
///
/// No other thread is left when this returns.
pub fn discard(memory: &DiscardRange, threads: usize) -> (Result<(), Errno>, Report) {
    let start = memory.hva().raw();
    // Chunks end on multiples of their size, so no huge page is shared by two threads.
    let (first, last) = (start / CHUNK_BYTES, (start + (memory.bytes() - 1)) / CHUNK_BYTES);
    let chunks = if memory.bytes() < MIN_PARALLEL_BYTES { 1 } else { last - first + 1 };
    let extra = threads.min(usize::try_from(chunks).unwrap_or(usize::MAX)).saturating_sub(1);
    let next = AtomicU64::new(first);
    let (refused, threads) = (AtomicBool::new(false), AtomicU64::new(0));
    let work = || {
        threads.fetch_add(1, Ordering::Relaxed);
        while !refused.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number > last {
                return;
            }
            let from = (number * CHUNK_BYTES).saturating_sub(start);
            let to = (number - first + 1).saturating_mul(CHUNK_BYTES) - start % CHUNK_BYTES;
            if memory.discard(from, to.min(memory.bytes()) - from).is_err() {
                refused.store(true, Ordering::Relaxed);
            }
        }
    };
    let ((), thread_start_failures) = thread::run(extra, work, work);
    let report =
        Report { threads: threads.into_inner(), thread_start_failures: thread_start_failures as u64 };
    if !refused.load(Ordering::Relaxed) {
        return (Ok(()), report);
    }
    // Pages larger than a chunk go only in one piece with others of their kind; whatever else it is has its errno here.
    (memory.discard(0, memory.bytes()), report)
}
