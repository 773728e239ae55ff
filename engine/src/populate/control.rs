//! What a job in the background shares with the threads that watch it.

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Lets other threads pause a job and see how far it is.
#[derive(Debug, Default)]
pub struct Control {
    paused: AtomicBool,
    present: AtomicU64,
}

impl Control {
    /// Makes the job stop after what its threads are at: a chunk or a map call each.
    pub fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    /// Lets the job go on, with so many bytes present.
    pub fn resume(&self, present: u64) {
        self.present.store(present, Ordering::Relaxed);
        self.paused.store(false, Ordering::Relaxed);
    }

    /// Whether the job is to stop.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Bytes that were found present or faulted in.
    pub fn present(&self) -> u64 {
        self.present.load(Ordering::Relaxed)
    }

    /// Counts bytes that are present.
    pub fn add_present(&self, bytes: u64) {
        self.present.fetch_add(bytes, Ordering::Relaxed);
    }
}
