//! The CPUs that QEMU's threads may run on.

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_setaffinity};

/// A thread context whose threads may use both CPUs of L1.
pub const BOTH_CONTEXT: [&str; 2] = ["-object", "thread-context,id=tc0,cpu-affinity=0-1"];
/// Runs the library's threads in this context, whatever CPUs QEMU may use.
pub const BOTH_PROPERTY: &str = ",x-dma-mapper-context=tc0";

/// Lets the calling thread, and what it starts from now on, use these CPUs.
pub fn allow(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    sched_setaffinity(None, &set).context("cannot choose CPUs")
}
