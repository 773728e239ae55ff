//! A device that is added before the machine has run for the first time, as management software does it, and a machine that is
//! stopped, reset while it is stopped, and continued. Only the firmware runs.

use anyhow::Result;
use serde_json::json;
use vfio_fast_protocol::record::Record;
use vfio_fast_protocol::scenarios::paused::Check;

use crate::l1::checks::{count, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::devices;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;

pub fn run(lab: &Lab) -> Result<()> {
    let line = CommandLine::new(lab).debug_console().q35("", "").root_port(0);
    let mut vm = Vm::start(lab, &line)?;
    lab.report.step("add");
    let mut device = devices::to_add(lab, 0, lab.job.mode);
    device["id"] = "dut".into();
    device["bus"] = "rp0".into();
    vm.qmp.run("device_add", device)?;
    mappings::mappings(lab, &mut vm, Check::MappingsBeforeRunning)?;
    mappings::no_threads(lab, &vm, Check::NoThreadsBeforeRunning)?;

    lab.report.step("run");
    vm.qmp.run("cont", json!({}))?;
    vm.wait_firmware(1)?;
    mappings::mappings(lab, &mut vm, Check::MappingsAfterFirmware)?;

    lab.report.step("stop");
    let before = vm.witnessed()?.len();
    vm.qmp.run("stop", json!({}))?;
    vm.qmp.run("cont", json!({}))?;
    vm.qmp.run("stop", json!({}))?;
    let changes = vm.witnessed()?[before..].iter().filter(|call| call.is_map() || call.is_unmap()).count();
    lab.report.expect(Check::UntouchedByStop, changes == 0, &format!("{changes} maps and unmaps"));

    lab.report.step("reset");
    vm.qmp.run("system_reset", json!({}))?;
    vm.qmp.run("cont", json!({}))?;
    vm.wait_firmware(2)?;
    let wanted = mappings::mappings(lab, &mut vm, Check::MappingsAfterResetWhileStopped)?;
    let facts = count::facts(&vm, &wanted)?;
    count::witnesses_agree(lab, &vm, &facts, Check::WitnessesAgree)?;
    lab.report.send(&Record::Facts(facts));
    vm.quit().map(drop)
}
