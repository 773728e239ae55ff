//! The kernel's counters of memory management.

use std::fs;

use anyhow::{Context, Result};

/// The counters of /proc/vmstat at one moment.
pub struct Vmstat(String);

impl Vmstat {
    pub fn read() -> Result<Self> {
        // Each processor counts for itself for a while.
        fs::write("/proc/sys/vm/stat_refresh", "1").context("cannot refresh the kernel's counters")?;
        Ok(Self(fs::read_to_string("/proc/vmstat")?))
    }

    /// The counter of that name.
    pub fn get(&self, name: &str) -> Result<u64> {
        let fields = self.0.lines().filter_map(|line| line.split_once(' '));
        let found = fields.filter(|(field, _)| *field == name).find_map(|(_, number)| number.parse().ok());
        found.with_context(|| format!("/proc/vmstat has no {name}"))
    }
}
