//! `x-dma-mapper-p2p=auto`: a BAR is mapped once another device can access it, and never if there is none.

use anyhow::{Context, Result};
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::scenarios::p2p_auto::Check;
use vfio_fast_protocol::witness::{self, Call, Mapping};

use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::proc;
use crate::l1::scenarios::p2p_data;
use crate::l1::vm::Vm;
use crate::pci::Device;

/// The device with the engine, and those whose BARs it can reach.
const IDS: [&str; 3] = ["dut", "target", "large"];
/// The registers of the device with the engine, and the memory of the others.
const BARS: [usize; 3] = [0, 2, 2];

pub fn run(lab: &Lab) -> Result<()> {
    lone(lab)?;
    together(lab)
}

fn line<'a>(lab: &'a Lab, devices: &[usize], job: &L2Job) -> CommandLine<'a> {
    // As in p2p-data: firmware puts large BARs at the end of what the processor can address.
    let mut line = CommandLine::new(lab).q35_with_ram().args(["-cpu", "max,host-phys-bits-limit=39"]);
    for &n in devices {
        line = line.device_with(n, &format!("id={},x-dma-mapper-p2p=auto", IDS[n]), lab.job.mode);
    }
    line.linux(job, "")
}

/// How many bytes of the BAR of that size were mapped so far, each time counted. Each has another size.
fn maps(vm: &Vm, calls: &[Call], bytes: u64) -> Result<u64> {
    let bars = proc::device_memory(vm.pid)?;
    let slots = witness::guest_memory(calls);
    let is_bar = |slot: &&Mapping| slot.size == bytes && proc::is_in(&bars, slot.vaddr);
    let slot = slots.values().find(is_bar).with_context(|| format!("KVM has no BAR of {bytes:#x} bytes"))?;
    let ours = |call: &&Call| call.mapped() && (slot.vaddr..slot.vaddr + bytes).contains(&call.vaddr);
    Ok(calls.iter().filter(ours).map(|call| call.size).sum())
}

/// The check `lone-bar-not-mapped`: a guest with the large BAR alone boots without a map of it.
fn lone(lab: &Lab) -> Result<()> {
    lab.report.step("lone");
    let mut vm = Vm::start(lab, &line(lab, &[2], &L2Job::Idle))?;
    vm.qmp.run("cont", serde_json::json!({}))?;
    vm.wait_ready(|_| {})?;
    let bytes = Device::at(&lab.job.devices[2]).bar(BARS[2])?.bytes;
    let mapped = maps(&vm, &vm.witnessed()?, bytes)?;
    lab.report.expect(
        Check::LoneBarNotMapped,
        mapped == 0,
        &format!("{mapped:#x} bytes mapped of {bytes:#x}"),
    );
    vm.quit().map(drop)
}

/// Of several devices, one accesses another's BAR.
fn together(lab: &Lab) -> Result<()> {
    lab.report.step("together");
    let job = L2Job::Peer { image_seed: lab.job.image_seed, write_seed: lab.job.write_seed };
    let mut vm = Vm::start(lab, &line(lab, &[0, 1, 2], &job))?;
    vm.qmp.run("cont", serde_json::json!({}))?;
    let mut moved = Vec::new();
    vm.wait_ready(|event| moved.push(event.clone()))?;

    let calls = vm.witnessed()?;
    p2p_data::report_data(lab, &witness::guest_memory(&calls), &moved, Check::Data)?;
    let bytes = |n: usize| anyhow::Ok(Device::at(&lab.job.devices[n]).bar(BARS[n])?.bytes);
    let (mut problems, mut seen) = (Vec::new(), Vec::new());
    for n in [0, 1, 2] {
        let size: u64 = bytes(n)?;
        let mapped = maps(&vm, &calls, size)?;
        let times = format!("{}: {mapped:#x} bytes mapped of {size:#x}", IDS[n]);
        // The guest may turn on bus mastering of the others as well, or not: then nobody can access the registers.
        let least = if n == 0 { 0 } else { size };
        if !(least..=2 * size).contains(&mapped) {
            problems.push(times.clone());
        }
        seen.push(times);
    }
    lab.report.check(Check::MappedAtMostTwice, &problems, &seen.join(", "));
    vm.quit().map(drop)
}
