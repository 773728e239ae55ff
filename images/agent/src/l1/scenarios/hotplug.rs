//! Memory devices come and go: mapped when plugged, gone when unplugged, and another one at the
//! same address is really another one.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use vfio_fast_protocol::job::{Container, Mode};
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::record::{Event, Record};
use vfio_fast_protocol::scenarios::hotplug::Check;
use vfio_fast_protocol::witness;

use crate::l1::checks::{count, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::{proc, requests};
use crate::wait::{Seen, wait_for};

pub(super) const DIMM_MIB: u64 = 256;
pub(super) const DIMM: u64 = DIMM_MIB << 20;
/// Far longer than an RCU grace period.
const FREED_WITHIN: Duration = Duration::from_secs(60);

pub fn run(lab: &Lab) -> Result<()> {
    let line = CommandLine::new(lab)
        .q35("", ",slots=2,maxmem=8G")
        .device(0, "dut")
        // Memory that is unplugged later must hold nothing that cannot move.
        .linux(&L2Job::Idle, "memhp_default_state=online_movable");
    let mut vm = Vm::start(lab, &line)?;
    lab.report.step("boot");
    vm.qmp.run("cont", json!({}))?;
    vm.wait_ready(|_| ())?;

    lab.report.step("plug");
    plug(lab, &mut vm, 1, DIMM_MIB, None)?;
    let address = address(&mut vm)?;
    mappings::mappings(lab, &mut vm, Check::MappingsAfterPlug)?;
    guest_has(&mut vm, lab.job.l2_memory_mib + DIMM_MIB / 2)?;

    let slots = witness::guest_memory(&vm.witnessed()?);
    let host = slots.get(&address).context("KVM has no memory where the device is")?.vaddr;

    lab.report.step("unplug");
    requests::unplug(lab, &mut vm, "dimm1")?;
    mappings::mappings(lab, &mut vm, Check::MappingsAfterUnplug)?;
    vm.qmp.run("object-del", json!({ "id": "mem1" }))?;
    // QEMU forgets the name at once, and the memory when the last reference to it is dropped.
    let freed = wait_for("the memory and its file to be gone", FREED_WITHIN, || {
        let (mapped, open) = (proc::has_mapped(vm.pid, host)?, proc::has_open(vm.pid, "memfd:mem1")?);
        let gone = (!mapped && !open).then_some(());
        Ok(Seen::of(gone, || format!("{host:#x} is mapped: {mapped}, its file is open: {open}")))
    });
    let problems: Vec<String> = freed.err().iter().map(|error| format!("{error:#}")).collect();
    lab.report.check(Check::MemoryFreed, &problems, "QEMU has neither the memory nor its file any more");

    lab.report.step("plug again");
    plug(lab, &mut vm, 2, DIMM_MIB, Some(address))?;
    let wanted = mappings::mappings(lab, &mut vm, Check::MappingsAfterReuse)?;
    mappings::no_threads(lab, &vm, Check::NoThreadsAfterReuse)?;
    mappings::every_commit(lab, &vm, Check::MappingsAtEveryCommit)?;
    report_turns(lab, &vm, address)?;
    let mut facts = count::facts(&vm, &wanted)?;
    count::witnesses_agree(lab, &vm, &facts, Check::WitnessesAgree)?;
    if lab.job.mode == Mode::Fast {
        count::stats_agree(lab, &mut vm, &mut facts, Check::StatsAgree)?;
    }
    lab.report.send(&Record::Facts(facts));
    vm.quit().map(drop)
}

/// Where the only memory device is.
pub(super) fn address(vm: &mut Vm) -> Result<u64> {
    let devices = vm.qmp.run("query-memory-devices", json!({}))?;
    devices[0]["data"]["addr"].as_u64().context("the memory device has no address")
}

/// Plugs memory device `n`, of that size.
pub(super) fn plug(lab: &Lab, vm: &mut Vm, n: u64, mib: u64, address: Option<u64>) -> Result<()> {
    let backend = format!("mem{n}");
    // Shared memory is a memfd, which iommufd can map by file.
    let share = lab.job.container == Container::Iommufd;
    let memory =
        json!({ "qom-type": "memory-backend-ram", "id": backend, "size": mib << 20, "share": share });
    vm.qmp.run("object-add", memory)?;
    let mut dimm = json!({ "driver": "pc-dimm", "id": format!("dimm{n}"), "memdev": backend });
    if let Some(address) = address {
        dimm["addr"] = address.into();
    }
    vm.qmp.run("device_add", dimm)?;
    Ok(())
}

/// Waits until L2 uses at least that much memory.
pub(super) fn guest_has(vm: &mut Vm, mib: u64) -> Result<()> {
    vm.wait_event(
        &format!("L2 to use {mib} MiB"),
        |event| matches!(event, Event::Memory { mib: now } if *now >= mib),
    )
}

/// The check `mapped-twice-unmapped-once`: the second device's memory was not taken for the first's.
fn report_turns(lab: &Lab, vm: &Vm, address: u64) -> Result<()> {
    let mut turns = String::new();
    let mut bytes = 0;
    for call in vm.witnessed()? {
        if call.iova < address || call.iova >= address + DIMM {
            continue;
        }
        if call.mapped() {
            turns.push('m');
            bytes += call.size;
        } else if call.unmapped() && call.out > 0 {
            turns.push('u');
        }
    }
    // However many pieces: map, then unmap, then map, and all of it both times.
    let mut order: Vec<char> = turns.chars().collect();
    order.dedup();
    let mut problems = Vec::new();
    if order != ['m', 'u', 'm'] || bytes != 2 * DIMM {
        problems.push(format!("calls {turns}, {bytes} bytes mapped in all"));
    }
    lab.report.check(Check::MappedTwiceUnmappedOnce, &problems, &format!("calls {turns}"));
    Ok(())
}
