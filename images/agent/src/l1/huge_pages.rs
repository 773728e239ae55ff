//! Whether this kernel gives huge pages.

use anyhow::Result;

use crate::machine;

const SYSFS: &str = "/sys/kernel/mm/transparent_hugepage";

/// Lets the kernel give huge pages to programs that ask for them, or to none.
pub fn allow(allowed: bool) -> Result<()> {
    let (anonymous, shmem) = if allowed { ("madvise", "advise") } else { ("never", "never") };
    machine::set(&format!("{SYSFS}/enabled"), anonymous)?;
    machine::set(&format!("{SYSFS}/shmem_enabled"), shmem)
}
