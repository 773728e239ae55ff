//! A page of L2's RAM gets a memory error: the kernel of L1 is told that the page is bad. QEMU replaces the page when L2
//! is reset, and the device has to access the new one. L2 does not run.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vfio_fast_protocol::scenarios::replaced::Check;
use vfio_fast_protocol::witness::Call;

use crate::l1::checks::mappings;
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::machine;
use crate::pagemap::Pagemap;
use crate::wait::{Seen, wait_for};

/// The address of the page in L2: amid a mapping.
const ADDRESS: u64 = 256 << 20;

const BAD_PAGE: &str = "/sys/devices/system/memory/hard_offline_page";
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

pub fn run(lab: &Lab) -> Result<()> {
    // One page is replaced, not two megabytes.
    machine::set(HUGE_PAGES, "never")?;
    let line = CommandLine::new(lab).q35("", "").device(0, "dut");
    let mut vm = Vm::start(lab, &line)?;
    let wanted = mappings::mappings(lab, &mut vm, Check::MappingsBeforeError)?;
    let (start, slot) = wanted.range(..=ADDRESS).next_back().context("L2 has no memory there")?;
    let vaddr = slot.vaddr + (ADDRESS - start);
    let pagemap = Pagemap::of(vm.pid)?;
    let old = pagemap.physical(vaddr)?.context("the page is mapped but not present")?;

    lab.report.step("memory error");
    machine::set(BAD_PAGE, &format!("{old:#x}"))?;
    wait_for("QEMU to notice the memory error", lab.wait(), || {
        let text = vm.stderr()?;
        Ok(Seen::of(text.contains("MCE Memory Error").then_some(()), || format!("QEMU says `{text}`")))
    })?;

    lab.report.step("reset");
    let before = vm.witnessed()?.len();
    vm.qmp.run("system_reset", json!({}))?;
    let reset = vm.qmp.event_within("RESET", lab.wait(), |_| true)?;
    ensure!(reset.is_some(), "QEMU was not reset");
    let new = pagemap.physical(vaddr)?;
    let seen = format!("page at {old:#x} before, {new:#x?} after");
    lab.report.expect(Check::PageReplaced, new.is_some_and(|new| new != old), &seen);
    let calls = vm.witnessed()?.split_off(before);
    let covers = |call: &&Call| call.iova <= ADDRESS && ADDRESS - call.iova < call.size;
    let unmap = calls.iter().position(|call| call.unmapped() && covers(&call));
    let map = calls.iter().rposition(|call| call.mapped() && covers(&call));
    let again = unmap.zip(map).is_some_and(|(unmap, map)| unmap < map);
    lab.report.expect(Check::MappedAgain, again, &format!("the calls at reset: {calls:?}"));
    mappings::mappings(lab, &mut vm, Check::MappingsAfterReset)?;
    mappings::no_threads(lab, &vm, Check::NoThreadsAfterReset)?;
    vm.quit().map(drop)
}
