//! What patched QEMU has the library map by descriptor: memory by its file, and BARs as dma-bufs. That it is the right
//! memory is looked at wherever mappings are: the witness knows the addresses of both.

use anyhow::Result;
use vfio_fast_protocol::checks::CheckName;

use crate::l1::checks::p2p_warning;
use crate::l1::lab::Lab;
use crate::l1::proc;
use crate::l1::vm::Vm;

/// Checks that no memory of a file was mapped by its address, and that the guest's RAM is of a file.
pub fn memory(lab: &Lab, vm: &Vm, check: impl CheckName) -> Result<()> {
    let files = proc::memory_files(vm.pid)?;
    let calls = vm.witnessed()?;
    let of_file = calls.iter().filter(|c| c.is_map() && proc::is_in(&files, c.vaddr));
    let (by_file, by_address): (Vec<_>, Vec<_>) = of_file.partition(|c| c.is_by_file());
    let mut problems: Vec<String> =
        by_address.iter().map(|c| format!("{:#x} + {:#x} was mapped by address", c.iova, c.size)).collect();
    let bytes: u64 = by_file.iter().filter(|c| c.mapped()).map(|c| c.size).sum();
    // Of the first MiB, firmware takes some away.
    let min_bytes = (lab.job.l2_memory_mib - 1) << 20;
    if bytes < min_bytes {
        problems.push(format!("{bytes} bytes were mapped by file, at least {min_bytes} should have been"));
    }
    let seen = format!("{} calls, {bytes} bytes", by_file.len());
    lab.report.check(check, &problems, &seen);
    Ok(())
}

/// Checks that each attempt to map a BAR was made by a dma-buf and worked, and that QEMU does not warn about it.
pub fn bars(lab: &Lab, vm: &Vm, check: impl CheckName) -> Result<()> {
    let bars = proc::device_memory(vm.pid)?;
    let calls = vm.witnessed()?;
    let of_bars: Vec<_> = calls.iter().filter(|c| c.is_map() && proc::is_in(&bars, c.vaddr)).collect();
    let mut problems = p2p_warning::any_warning(&vm.stderr()?);
    for call in of_bars.iter().filter(|c| !c.is_by_file() || !c.mapped()) {
        problems.push(format!("not mapped as a dma-buf: {call:x?}"));
    }
    if of_bars.is_empty() {
        problems.push("no BAR was ever mapped".to_owned());
    }
    let bytes: u64 = of_bars.iter().map(|c| c.size).sum();
    lab.report.check(check, &problems, &format!("{} calls, {bytes} bytes", of_bars.len()));
    Ok(())
}
