//! Faulting memory in on many threads before it is mapped.
// API skeleton for the engine; the real body comes with sys (this file is replaced as a whole).

use std::time::Duration;

use crate::addr::HostVa;

/// A stretch of host memory that is about to be mapped.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Its first byte.
    pub hva: HostVa,
    /// Its length.
    pub bytes: u64,
    /// Whether the device may write.
    pub writable: bool,
}

/// What faulting in did, and what it left to the map call.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// madvise calls that succeeded.
    pub calls: u64,
    /// Bytes they faulted in.
    pub bytes: u64,
    /// Bytes left to the map call.
    pub skipped_bytes: u64,
    /// Chunks that answered EINVAL.
    pub einval: u64,
    /// Chunks that answered EFAULT.
    pub efault: u64,
    /// Chunks that answered ENOMEM.
    pub enomem: u64,
    /// Chunks that answered EHWPOISON.
    pub ehwpoison: u64,
    /// Chunks that answered anything else.
    pub other: u64,
    /// Threads that worked, the caller's included.
    pub threads: u64,
    /// Threads that could not be started.
    pub thread_fallbacks: u64,
    /// Indices of the pieces that turned out to be device memory.
    pub device_pieces: Vec<usize>,
    /// From the first to the last byte.
    pub duration: Duration,
}

/// Threads a commit may use: `most`, or one per allowed CPU if that is less or `most` is 0.
pub fn allowed_threads(most: usize) -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if most == 0 { allowed } else { most.min(allowed) }
}

/// Faults `pieces` in with up to `threads` threads.
pub fn populate(_pieces: &[Piece], _threads: usize) -> Report {
    Report::default()
}
