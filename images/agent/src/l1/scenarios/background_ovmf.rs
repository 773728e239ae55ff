//! OVMF turns on the bus mastering of every device for a moment, long before it has a driver for it, to learn which bits
//! of the command register can be set. In the background, the guest waits for its memory there. Linux then moves data.

use anyhow::Result;
use serde_json::json;
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::scenarios::background_ovmf::Check;

use crate::l1::checks::mappings;
use crate::l1::command_line::CommandLine;
use crate::l1::faults;
use crate::l1::lab::Lab;
use crate::l1::qemu_trace;
use crate::l1::scenarios::background;

pub fn run(lab: &Lab) -> Result<()> {
    lab.report.step("OVMF turns on bus mastering");
    let data = L2Job::Disk(lab.disk_job(lab.job.l2_memory_mib * 3 / 4));
    let line = CommandLine::new(lab)
        .trace(&["vfio_dma_gate_*"])
        .q35("", "")
        .device_with(0, "id=dut,x-dma-mapper-background=on", lab.job.mode)
        .linux(&data, "")
        .firmware()?;
    let mut vm = background::waiting(lab, line)?;
    let started = background::first_start(&vm.witnessed()?).is_some();
    let held = qemu_trace::count(background::HELD)?;
    // Linux has not run yet: firmware has nothing else to wait for.
    let linux = vm.first_output().is_some();
    let seen = format!("held {held} times, started before: {started}, Linux runs: {linux}");
    lab.report.expect(Check::HeldForFirmware, held == 1 && !started && !linux, &seen);

    lab.report.step("Linux moves data");
    faults::disarm()?;
    let mut read = 0;
    vm.wait_ready(|event| read += background::read_bytes(event))?;
    lab.report.expect(Check::Data, read > 0, &format!("{read} bytes read and right"));
    let problems = background::missing_at_start(lab, &vm.witnessed()?)?;
    lab.report.check(Check::MappedAtBusMaster, &problems, "all is mapped when the device is started");
    mappings::mappings_without_bars(lab, &mut vm, Check::MappingsAfterBoot)?;

    lab.report.step("reset");
    vm.qmp.run("system_reset", json!({}))?;
    vm.wait_ready(|_| ())?;
    let again = qemu_trace::count(background::HELD)?;
    // The gate does not close again: all stays mapped.
    lab.report.expect(Check::HeldAfterReset, again == held, &format!("held {again} times"));
    mappings::mappings_without_bars(lab, &mut vm, Check::MappingsAfterReset)?;
    background::progress_is(&mut vm, "gate open")?;
    vm.quit().map(drop)
}
