//! Starts unpatched QEMU twice, without the library and preloaded with it. L2 boots and moves data each time; to it, the
//! second start is its second boot.

use anyhow::Result;
use serde_json::json;
use vfio_fast_protocol::record::Event;
use vfio_fast_protocol::scenarios::preload::Check;
use vfio_fast_protocol::witness::Call;

use crate::l1::checks::{mappings, preloaded};
use crate::l1::huge_pages;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;

pub fn run(lab: &Lab) -> Result<()> {
    huge_pages::allow(true)?;
    let mut moved = Vec::new();
    lab.report.step("without");
    let without = one(lab, false, &mut moved)?;
    lab.report.step("preloaded");
    let with = one(lab, true, &mut moved)?;
    let summary = preloaded::summary(lab);

    preloaded::same_calls(lab, Check::SameCalls, &without, &with);
    preloaded::summary_agrees(lab, Check::SummaryAgrees, &with, &summary);
    preloaded::faulted_in(lab, Check::FaultedInByThreads, &summary);
    preloaded::data(lab, Check::Data, &moved);
    Ok(())
}

/// One QEMU; returns every call that it made.
fn one(lab: &Lab, preloaded: bool, moved: &mut Vec<Event>) -> Result<Vec<Call>> {
    let mut vm = Vm::start(lab, &preloaded::line(lab, preloaded))?;
    if preloaded {
        mappings::no_threads(lab, &vm, Check::NoThreadsAfterRealize)?;
    }
    vm.qmp.run("cont", json!({}))?;
    vm.wait_ready(|event| moved.push(event.clone()))?;
    if preloaded {
        mappings::no_threads(lab, &vm, Check::NoThreadsAfterBoot)?;
    }
    let check = if preloaded { Check::MappingsPreloaded } else { Check::MappingsWithout };
    mappings::mappings(lab, &mut vm, check)?;
    vm.quit()
}
