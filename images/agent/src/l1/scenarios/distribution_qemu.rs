//! Starts Debian's QEMU twice on a Debian host, without the library and preloaded with it by the vfio-fast-run of Debian's
//! package. L2 boots and moves data each time; to it, the second start is its second boot. The log `times` says how long
//! each start took.

use anyhow::Result;
use serde_json::json;
use vfio_fast_protocol::record::Event;
use vfio_fast_protocol::scenarios::distribution_qemu::Check;
use vfio_fast_protocol::witness::Call;

use crate::l1::checks::{mappings, preloaded};
use crate::l1::command_line::CommandLine;
use crate::l1::huge_pages;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;

pub fn run(lab: &Lab) -> Result<()> {
    huge_pages::allow(true)?;
    let mut moved = Vec::new();
    lab.report.step("warm-up");
    warm_up(lab)?;
    lab.report.step("without");
    let without = one(lab, false, &mut moved)?;
    lab.report.step("preloaded");
    let with = one(lab, true, &mut moved)?;
    let ratio = without.built_s / with.built_s;
    lab.report.log("times", &format!("a machine is built without the library in {ratio:.2} times the time"));
    let summary = preloaded::summary(lab);

    preloaded::same_calls(lab, Check::SameCalls, &without.calls, &with.calls);
    preloaded::summary_agrees(lab, Check::SummaryAgrees, &with.calls, &summary);
    preloaded::faulted_in(lab, Check::FaultedInByThreads, &summary);
    preloaded::data(lab, Check::Data, &moved);
    Ok(())
}

/// Starts a small QEMU: the first one is read from the disk, and an emulator translates it.
fn warm_up(lab: &Lab) -> Result<()> {
    const MIB: u64 = 256;
    let line = CommandLine::new(lab).q35_of_mib(MIB, false).root_port(0).device_behind(0, "dut", 0);
    Vm::start(lab, &line)?.quit().map(drop)
}

/// What one QEMU did.
struct Ran {
    calls: Vec<Call>,
    /// Seconds until its machine was built.
    built_s: f64,
}

fn one(lab: &Lab, preloaded: bool, moved: &mut Vec<Event>) -> Result<Ran> {
    let mut vm = Vm::start(lab, &preloaded::line(lab, preloaded))?;
    let built_s = vm.greeting().as_secs_f64();
    let version = vm.qmp.run("query-version", json!({}))?;
    let debians = version["package"].as_str().is_some_and(|package| package.starts_with("Debian "));
    lab.report.expect(Check::IsDebians, debians, &version.to_string());
    vm.qmp.run("cont", json!({}))?;
    vm.wait_ready(|event| moved.push(event.clone()))?;
    if preloaded {
        mappings::no_threads(lab, &vm, Check::NoThreads)?;
    }
    let check = if preloaded { Check::MappingsPreloaded } else { Check::MappingsWithout };
    mappings::mappings(lab, &mut vm, check)?;
    let ready_s = vm.age().as_secs_f64();
    let calls = vm.quit()?;
    let name = if preloaded { "preloaded" } else { "without" };
    lab.report.log("times", &format!("{name}: machine built {built_s:.3} s, data moved {ready_s:.3} s"));
    Ok(Ran { calls, built_s })
}
