//! Looks at a VM that stands still: does the kernel hold exactly what the flat view wants?

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vfio_fast_agent::flatview::{self, Row};
use vfio_fast_agent::ranges::{self, Reach};
use vfio_fast_agent::witness::{self, Held};

use super::Lab;
use super::vm::Vm;

/// What was seen at one quiet moment.
pub struct Snapshot {
    /// Rows of the flat view the device's DMA goes through.
    pub rows: Vec<Row>,
    /// What the kernel holds.
    pub held: Held,
}

impl Snapshot {
    /// Bytes the flat view wants mapped; RAM and ROM alone if `ram_only`.
    pub fn wanted_bytes(&self, ram_only: bool) -> u64 {
        let rows = self.rows.iter().filter(|row| !(ram_only && row.is_device()));
        rows.filter_map(Row::reach).map(Reach::bytes).sum()
    }
}

/// Compares the kernel's mappings with the flat view of address space `space` while the VM stands
/// still, and reports it as the check `mappings-<when>`. A VM that was running runs again.
pub fn mappings(lab: &Lab, vm: &mut Vm, space: &str, when: &str) -> Result<Snapshot> {
    let running = vm.qmp.run("query-status", json!({}))?["running"] == true;
    if running {
        vm.qmp.run("stop", json!({}))?;
    }
    let text = vm.qmp.human("info mtree -f")?;
    let calls = vm.witnessed()?;
    if running {
        vm.qmp.run("cont", json!({}))?;
    }
    text.lines().for_each(|line| lab.report.log(&format!("mtree-{when}"), line));
    let rows = flatview::rows_of(&text, space)
        .with_context(|| format!("no flat view renders address space `{space}`"))?;
    let containers = witness::replay(&calls)?;
    ensure!(containers.len() <= 1, "more containers than expected: {:?}", containers.keys());
    let held = containers.into_values().next().unwrap_or_default();
    let snapshot = Snapshot { rows, held };

    let wanted: Vec<Reach> = snapshot.rows.iter().filter_map(Row::reach).collect();
    let mapped = witness::reach(&snapshot.held)?;
    let count = mapped.len();
    let mut problems = ranges::differences("wanted", wanted, "mapped", mapped);
    problems.extend(wrong_memory(&snapshot));
    let seen = format!("{count} mappings, {} bytes, as the flat view", snapshot.wanted_bytes(false));
    lab.report.check(&format!("mappings-{when}"), &problems, &seen);
    Ok(snapshot)
}

/// The flat view names no host addresses, but rows of one memory region must lie at one distance
/// from it: RAM mapped from the wrong place would show as a second distance.
fn wrong_memory(snapshot: &Snapshot) -> Vec<String> {
    let mut bases: BTreeMap<&str, u64> = BTreeMap::new();
    let mut problems = Vec::new();
    for row in &snapshot.rows {
        let Some(reach) = row.reach() else { continue };
        for (&iova, mapping) in snapshot.held.range(..=reach.last) {
            let last = iova + (mapping.size - 1);
            if last < reach.start {
                continue;
            }
            // Host address of the region's first byte, by this mapping.
            let at = reach.start.max(iova);
            let offset = row.offset + (at - row.start);
            let base = mapping.vaddr.wrapping_add(at - iova).wrapping_sub(offset);
            let known = *bases.entry(&row.name).or_insert(base);
            if known != base {
                problems.push(format!("{} at {at:#x} is mapped from the wrong memory", row.name));
            }
        }
    }
    problems
}

/// Reports the check `nothing-mapped-<when>`.
pub fn nothing_mapped(lab: &Lab, vm: &Vm, when: &str) -> Result<()> {
    let containers = witness::replay(&vm.witnessed()?)?;
    let left = containers.values().flatten();
    let problems: Vec<String> =
        left.map(|(iova, m)| format!("still mapped: {iova:#x} + {:#x}", m.size)).collect();
    lab.report.check(&format!("nothing-mapped-{when}"), &problems, "nothing is mapped");
    Ok(())
}

/// Reports the check `no-threads-<when>`: the library keeps no thread between commits.
pub fn no_threads(lab: &Lab, vm: &Vm, when: &str) -> Result<()> {
    let names = vm.threads()?;
    let ours = names.iter().filter(|name| name.starts_with("vfio-fast"));
    let problems: Vec<String> = ours.map(|name| format!("thread {name} is alive")).collect();
    lab.report.check(&format!("no-threads-{when}"), &problems, &names.join(" "));
    Ok(())
}

/// Host address ranges of `pid` that are mapped from a VFIO device: its BARs.
pub fn device_memory(pid: u32) -> Result<Vec<(u64, u64)>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut out = Vec::new();
    for line in maps.lines().filter(|line| line.contains("vfio-device")) {
        let span = line.split(' ').next().unwrap_or_default();
        let (start, end) = span.split_once('-').context("a line of maps without a span")?;
        out.push((u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?));
    }
    Ok(out)
}
