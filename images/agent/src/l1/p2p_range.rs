//! A BAR where the IOMMU cannot address it: one warning, and the VM goes on. The firmware alone
//! runs here, and nothing is unplugged, so this is also where permissions are looked at.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use vfio_fast_agent::flatview::Row;
use vfio_fast_agent::pattern;
use vfio_fast_agent::ranges::{self, Reach};
use vfio_fast_agent::witness;

use super::vm::{self, Vm};
use super::{Lab, observe};
use crate::machine;

/// The first address the IOMMU of this scenario cannot have.
const BEYOND: u64 = 1 << 39;

pub fn run(lab: &Lab) -> Result<()> {
    let (device, property) = (&lab.job.devices[0], lab.job.mode.device_property());
    let mut arguments = vm::common_arguments();
    arguments.extend(
        [
            "-machine",
            "q35",
            "-m",
            &format!("{}M", lab.job.l2_memory_mib),
            "-device",
            "pcie-root-port,id=rp0,chassis=1",
            "-device",
            &format!("vfio-pci,host={device},id=dut,bus=rp0{property}"),
        ]
        .map(str::to_owned),
    );
    let mut vm = Vm::start(lab, &arguments)?;
    lab.report.step("firmware");
    vm.qmp.run("cont", json!({}))?;
    machine::wait_for(Duration::from_secs(lab.job.wait_s), || {
        let slots = witness::guest_memory(&vm.witnessed().ok()?);
        // The BAR is placed, and PAM is as the firmware leaves it: it ends with locking its shadow.
        let placed = slots.range(BEYOND..).next().is_some();
        (placed && slots.contains_key(&0xf0000)).then_some(())
    })
    .context("the firmware did not place the BAR beyond the IOMMU's reach")?;
    // What follows the last PAM write.
    std::thread::sleep(Duration::from_millis(500));

    let (rows, held) = observe::flat_view_rows(lab, &mut vm, "memory", "after-firmware")?;
    let (beyond, within): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.start >= BEYOND);
    let wanted: Vec<Reach> = within.iter().filter_map(|row| row.reach()).collect();
    let read_only = wanted.iter().filter(|reach| !reach.write).count();
    let mut problems = ranges::differences("printed", wanted, "mapped", held);
    if read_only == 0 {
        problems.push("no row is read-only: the firmware was not through".into());
    }
    if !beyond.iter().any(|row| row.is_device() && row.reach().is_some()) {
        problems.push("no BAR lies beyond the IOMMU's reach".into());
    }
    let seen = format!("{} rows are mapped, {read_only} read-only, the BAR is not", within.len());
    lab.report.check("flat-view-after-firmware", &problems, &seen);
    observe::no_threads(lab, &vm, "after-firmware")?;

    let status = vm.qmp.run("query-status", json!({}))?;
    let problems = if status["running"] == true { vec![] } else { vec![status.to_string()] };
    lab.report.check("alive", &problems, "the VM runs");
    let errors = vm.stderr()?;
    lab.report.check("one-warning", &judge_warning(lab, &errors), errors.trim());
    vm.quit()
}

/// Exactly one warning, with QEMU's own text and its hint.
fn judge_warning(lab: &Lab, errors: &str) -> Vec<String> {
    let warning = "warning: vfio_container_dma_map(%p, %p, %p, %p) = -22 (Invalid argument)";
    let hint = format!("{}: PCI peer-to-peer transactions on BARs are not supported.", lab.job.devices[0]);
    // The line begins with the program's name.
    let text = |line: &str| line.split_once(": ").map(|(_, rest)| rest.to_owned());
    let warnings = errors.lines().filter_map(text).filter(|t| pattern::matches(warning, t)).count();
    let hints = errors.lines().filter(|line| **line == hint).count();
    if warnings == 1 && hints == 1 {
        return Vec::new();
    }
    vec![format!("{warnings} times `{warning}`, {hints} times `{hint}` in `{}`", errors.trim())]
}
