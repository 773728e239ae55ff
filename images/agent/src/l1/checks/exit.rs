//! How QEMU ends: it or the kernel unmaps everything, and nothing stays pinned.

use std::time::Duration;

use anyhow::{Result, ensure};
use vfio_fast_protocol::checks::CheckName;
use vfio_fast_protocol::job::Mode;

use super::exit_calls;
use crate::l1::checks::mappings;
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::vmstat::Vmstat;
use crate::wait::{Seen, wait_for};

/// The library unmaps at most this much with one call.
const MAX_UNMAP: u64 = 4 << 30;
/// The kernel unpins what a process had before its end is reported, or a little later.
const UNPINNED_WITHIN: Duration = Duration::from_secs(60);
/// Bytes of a page of L1.
const PAGE: u64 = 4096;

/// Pages pinned by anybody, as L1's kernel counts them.
pub fn pinned_pages() -> Result<u64> {
    let vmstat = Vmstat::read()?;
    Ok(vmstat.get("nr_foll_pin_acquired")?.saturating_sub(vmstat.get("nr_foll_pin_released")?))
}

/// Quits, and checks what QEMU did about the mappings of its only device: the library unmaps them, without it the kernel
/// does. `pinned` pages were pinned before QEMU was started, and have to be so again.
pub fn quit(lab: &Lab, vm: Vm, pinned: u64, check: impl CheckName) -> Result<()> {
    let before_quit = vm.witnessed()?.len();
    let calls = vm.quit()?;
    let mut problems = match lab.job.mode {
        Mode::Fast => exit_calls::taken_away(&calls, before_quit, 1, MAX_UNMAP)?,
        _ => exit_calls::left_alone(&calls, before_quit),
    };
    problems.extend(still_pinned(pinned)?);
    lab.report.check(check, &problems, &format!("{} calls after it", calls.len() - before_quit));
    Ok(())
}

/// Checks that a QEMU that is killed leaves nothing pinned, and that the next one can have its device.
pub fn kill(lab: &Lab, line: &CommandLine, killed: impl CheckName, after: impl CheckName) -> Result<()> {
    let before = pinned_pages()?;
    let mut vm = Vm::start(lab, line)?;
    vm.qmp.status()?;
    let mut problems = Vec::new();
    let held = pinned_pages()?.saturating_sub(before);
    if held < (lab.job.l2_memory_mib << 20) / PAGE {
        problems.push(format!("{held} pages were pinned, RAM has more"));
    }
    vm.kill()?;
    problems.extend(still_pinned(before)?);
    lab.report.check(killed, &problems, &format!("{held} pages were pinned, and none is left"));

    let mut vm = Vm::start(lab, line)?;
    let wanted = mappings::mappings(lab, &mut vm, after)?;
    ensure!(!wanted.is_empty(), "the next QEMU mapped nothing");
    vm.quit().map(drop)
}

/// What is wrong if more pages are pinned than `before`.
pub fn still_pinned(before: u64) -> Result<Option<String>> {
    let unpinned = wait_for("pages to be unpinned", UNPINNED_WITHIN, || {
        let left = pinned_pages()?.saturating_sub(before);
        Ok(Seen::of((left == 0).then_some(()), || format!("{left} pages are still pinned")))
    });
    Ok(unpinned.err().map(|error| format!("{error:#}")))
}
