//! A device is to be unplugged before L2's kernel runs, which then clears the pending event of its
//! ACPI hardware: the request is lost. QEMU takes another one, and the device goes.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::record::Record;
use vfio_fast_protocol::scenarios::early_unplug::Check;

use crate::l1::checks::{count, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::requests;
use crate::l1::vm::Vm;

/// The firmware runs far longer.
const IN_FIRMWARE: Duration = Duration::from_millis(20);

pub fn run(lab: &Lab) -> Result<()> {
    let line =
        CommandLine::new(lab).q35("", "").root_port(0).device_behind(0, "dut", 0).linux(&L2Job::Idle, "");
    let mut vm = Vm::start(lab, &line)?;

    lab.report.step("early request");
    // QEMU forgets a request when the guest's clock has moved on, except for one that is made at time 0.
    vm.qmp.run("cont", json!({}))?;
    thread::sleep(IN_FIRMWARE);
    vm.qmp.run("stop", json!({}))?;
    vm.qmp.run("device_del", json!({ "id": "dut" }))?;
    lab.report.step("boot");
    vm.qmp.run("cont", json!({}))?;
    vm.wait_ready(|_| ())?;
    let deleted = vm.qmp.event_within("DEVICE_DELETED", Duration::ZERO, |data| data["device"] == "dut")?;
    lab.report.expect(Check::FirstRequestMissed, deleted.is_none(), &format!("event: {deleted:?}"));
    let wanted = mappings::mappings(lab, &mut vm, Check::MappingsAfterBoot)?;

    lab.report.step("next request");
    requests::unplug(lab, &mut vm, "dut")?;
    mappings::nothing_mapped(lab, &vm, Check::NothingMappedAfterUnplug)?;
    mappings::unmapped_before_leaving(lab, &vm, Check::UnmappedBeforeLeaving)?;
    mappings::no_threads(lab, &vm, Check::NoThreadsAfterUnplug)?;
    let facts = count::facts(&vm, &wanted)?;
    count::witnesses_agree(lab, &vm, &facts, Check::WitnessesAgree)?;
    lab.report.send(&Record::Facts(facts));
    vm.quit().map(drop)
}
