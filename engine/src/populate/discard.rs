//! Discarding memory on many threads.
//!
//! Removing pages from the page tables and freeing them takes about a second per few GiB of base pages. A process
//! that exits, or frees all of its memory at once, does all of that on one thread. In pieces it runs on every CPU:
//! madvise takes the address space's lock only for reading.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{CHUNK_BYTES, MIN_PARALLEL_BYTES};
use crate::error::Errno;
use crate::sys::cpu::CpuSet;
use crate::sys::discard::DiscardRange;
use crate::sys::thread;

/// The threads that discarded memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Threads that worked, including the calling one.
    pub threads: u64,
    /// Threads that could not be started.
    pub thread_start_failures: u64,
}

/// Discards all of `memory` on at most `threads` threads, including the calling one; the others run on `cpus`. After an error any part of it
/// may be discarded.
///
/// All other threads have ended when this returns.
pub fn discard(memory: &DiscardRange, threads: usize, cpus: Option<&CpuSet>) -> (Result<(), Errno>, Report) {
    let start = memory.hva().raw();
    // Chunks end at multiples of their size, so two threads never share a huge page.
    let (first, last) = (start / CHUNK_BYTES, (start + (memory.bytes() - 1)) / CHUNK_BYTES);
    let chunks = if memory.bytes() < MIN_PARALLEL_BYTES { 1 } else { last - first + 1 };
    let extra = threads.min(usize::try_from(chunks).unwrap_or(usize::MAX)).saturating_sub(1);
    let next = AtomicU64::new(first);
    let (refused, threads) = (AtomicBool::new(false), AtomicU64::new(0));
    let discard_chunks = || {
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
    // After a panic in one thread the others stop.
    let work = || thread::on_panic(|| refused.store(true, Ordering::Relaxed), discard_chunks);
    let ((), refused_threads) = thread::run(extra, cpus, work, work);
    let thread_start_failures = refused_threads.not_started as u64;
    let report = Report { threads: threads.into_inner(), thread_start_failures };
    if !refused.load(Ordering::Relaxed) {
        return (Ok(()), report);
    }
    // Pages larger than a chunk can only be discarded in one call. Any other failure returns its errno here.
    (memory.discard(0, memory.bytes()), report)
}
