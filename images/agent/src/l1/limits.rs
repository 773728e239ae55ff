//! How much memory a process may lock.

use anyhow::{Context, Result};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use crate::machine;

/// Takes from this thread, and from every program it starts, the right to lock any amount of
/// memory: from now on the limit counts, although everything here runs as root.
pub fn give_up_lock_right() -> Result<()> {
    remove_capability_from_bounding_set(CapabilitySet::IPC_LOCK).context("cannot give up CAP_IPC_LOCK")
}

/// Sets the limit of a process; of this one, and of those it will start, without `pid`.
pub fn set_memlock(pid: Option<u32>, bytes: u64) -> Result<()> {
    let pid = match pid {
        Some(pid) => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            Some(pid.context("no process has that id")?)
        }
        None => None,
    };
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    prlimit(pid, Resource::Memlock, limit).context("cannot set RLIMIT_MEMLOCK")?;
    Ok(())
}

/// How many entries containers made from now on may have.
pub fn allow_entries(entries: u64) -> Result<()> {
    const LIMIT: &str = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
    machine::set(LIMIT, &entries.to_string())
}
