//! The kernel's fault injection: allocations that it makes in calls that map and unmap fail. Elsewhere, not all of the
//! kernel's code survives that: ACPI's interpreter crashes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The injectors, as debugfs names them: of small objects, and of pages.
const INJECTORS: [&str; 2] = ["failslab", "fail_page_alloc"];
const ROOT: &str = "/sys/kernel/debug";

/// Chooses what may fail, once for this boot.
pub fn prepare() -> Result<()> {
    for injector in INJECTORS {
        set(injector, "verbose", 0)?;
        set(injector, "task-filter", "Y")?;
        set(injector, "probability", 100)?;
        set(injector, "times", 0)?;
        // Allocations that may wait fail as well.
        set(injector, "ignore-gfp-wait", "N")?;
    }
    // And those for the memory of a process, of a single page too.
    set("fail_page_alloc", "ignore-gfp-highmem", "N")?;
    set("fail_page_alloc", "min-order", 0)
}

/// From now on, each `interval`th allocation of a kind fails, `times` times, in those calls that the witness chooses.
pub fn start(interval: u64, times: u64) -> Result<()> {
    for injector in INJECTORS {
        set(injector, "interval", interval)?;
        set(injector, "times", times)?;
    }
    Ok(())
}

/// From now on, none fails. Returns how many did.
pub fn stop(times: u64) -> Result<u64> {
    let mut failed = 0;
    for injector in INJECTORS {
        let file = Path::new(ROOT).join(injector).join("times");
        let left = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        failed += times.saturating_sub(left.trim().parse().context("the number of failures left")?);
        set(injector, "times", 0)?;
    }
    Ok(failed)
}

fn set(injector: &str, option: &str, value: impl ToString) -> Result<()> {
    let file = Path::new(ROOT).join(injector).join(option);
    fs::write(&file, value.to_string()).with_context(|| format!("cannot write {}", file.display()))
}
