//! False answers that the witness gives QEMU in place of the kernel.

use std::fs;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

/// The file that the witness reads at every call that could get a false answer.
pub const FILE: &str = "/run/faults";

/// All addresses.
pub const EVERYWHERE: RangeInclusive<u64> = 0..=u64::MAX;

/// What is answered.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// An unmap is refused with EBUSY.
    Busy,
    /// An unmap is made, and a page too few is returned.
    Short,
    /// The device's configuration space has only ones.
    Gone,
    /// The device has transactions pending.
    Pending,
    /// Each call that faults memory in takes half a second longer for 16 MiB.
    Slow,
    /// A map is refused with ENOMEM.
    Full,
}

/// From now on, answers the next `count` calls falsely. Of maps and unmaps, only those of at most `largest` bytes that
/// touch `range`.
pub fn arm(fault: Fault, range: RangeInclusive<u64>, largest: u64, count: u64) -> Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let kind = match fault {
        Fault::Busy => "busy",
        Fault::Short => "short",
        Fault::Gone => "gone",
        Fault::Pending => "pending",
        Fault::Slow => "slow",
        Fault::Full => "full",
    };
    let line = format!("{number:x} {kind} {:x} {:x} {largest:x} {count}\n", range.start(), range.end());
    // The witness must never read a part of it.
    let new = format!("{FILE}.new");
    fs::write(&new, line)
        .and_then(|()| fs::rename(&new, FILE))
        .context("cannot tell the witness what to answer")
}

/// From now on, all answers are the kernel's.
pub fn disarm() -> Result<()> {
    match fs::remove_file(FILE) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("cannot disarm the witness")
        }
        _ => Ok(()),
    }
}
