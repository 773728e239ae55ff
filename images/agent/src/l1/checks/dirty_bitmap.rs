//! Dirty pages while L2's IOMMU is turned off: what type1 unmaps then comes with its bitmap.

use anyhow::Result;
use serde_json::json;
use vfio_fast_protocol::checks::CheckName;
use vfio_fast_protocol::witness::Call;

use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::wait::{Seen, wait_for};

/// VFIO_IOMMU_DIRTY_PAGES.
const DIRTY_PAGES: u32 = 0x3b75;
/// VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP.
const WITH_BITMAP: u32 = 1;
/// QEMU tracks dirty pages for this long to measure how fast a guest writes.
const SECONDS: u64 = 5;
/// No driver maps that much at once; RAM is far larger.
const LARGE: u64 = 16 << 20;

/// Checks that every unmap returns a dirty bitmap. It resets L2.
pub fn run(lab: &Lab, vm: &mut Vm, check: impl CheckName) -> Result<()> {
    lab.report.step("dirty pages");
    let before = vm.witnessed()?.len();
    vm.qmp.run("calc-dirty-rate", json!({ "calc-time": SECONDS, "mode": "dirty-bitmap" }))?;
    wait(lab, vm, before, "dirty tracking to begin", |calls| {
        calls.iter().any(|c| c.cmd == DIRTY_PAGES && c.ret == 0)
    })?;
    let tracked = vm.witnessed()?.len();
    vm.qmp.run("system_reset", json!({}))?;
    // All that L2's driver had mapped is gone before RAM is mapped as a whole.
    let calls = wait(lab, vm, tracked, "RAM to be mapped again", |calls| {
        calls.iter().any(|c| c.mapped() && c.size >= LARGE)
    })?;
    let taken: Vec<&Call> = calls.iter().filter(|c| c.unmapped() && c.out > 0).collect();
    let mut problems: Vec<String> = calls
        .iter()
        .filter(|c| c.is_unmap() && c.ret != 0)
        .map(|c| format!("an unmap at {:#x} failed with {}", c.iova, c.errno))
        .collect();
    let without = taken.iter().filter(|c| c.flags & WITH_BITMAP == 0).count();
    if without > 0 || taken.is_empty() {
        problems.push(format!("{without} of {} unmaps came without a bitmap", taken.len()));
    }
    lab.report.check(check, &problems, &format!("{} unmaps, each with one", taken.len()));
    // Tracking ends by itself, without an error.
    wait(lab, vm, tracked, "dirty tracking to end", |calls| {
        calls.iter().any(|c| c.cmd == DIRTY_PAGES && c.ret == 0)
    })?;
    Ok(())
}

/// The calls from that one on, as soon as `done` is true of them.
fn wait(lab: &Lab, vm: &Vm, from: usize, what: &str, done: impl Fn(&[Call]) -> bool) -> Result<Vec<Call>> {
    wait_for(what, lab.wait(), || {
        let mut calls = vm.witnessed()?;
        let new = calls.split_off(from);
        let (count, last) = (new.len(), new.last().cloned());
        Ok(Seen::of(done(&new).then_some(new), || format!("{count} calls, the last one {last:x?}")))
    })
}
