//! The main scenario: boot, data, reset, data again, unplug, plug again and data once more.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use vfio_fast_protocol::job::{Container, DiskLayout, Mode, Ram};
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::record::{Event, Facts, Record};
use vfio_fast_protocol::scenarios::nvme::Check;

use crate::l1::checks::{by_descriptor, count, cpr, exit, mappings, p2p_warning, sandbox};
use crate::l1::command_line::CommandLine;
use crate::l1::guest_machine::MACHINE;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::{devices, huge_pages, requests};
use crate::wait::{Seen, wait_for};

pub fn run(lab: &Lab) -> Result<()> {
    let job = &lab.job;
    if job.container == Container::Iommufd {
        // In base pages a memfd takes several times as long to fill and to map.
        huge_pages::allow(true)?;
    }
    let data = lab.disk_job(job.l2_memory_mib * 3 / 4);
    let line = CommandLine::new(lab)
        .machine_with_ram()
        .firmware()?
        .args(["-smp", "1"])
        .root_port(0)
        .device_behind(0, "dut", 0)
        .linux(&L2Job::Disk(data), "");

    let pinned = exit::pinned_pages()?;
    lab.report.step("realize");
    let mut vm = Vm::start(lab, &line)?;
    let paused_from = vm.age();
    mappings::mappings(lab, &mut vm, Check::MappingsAfterRealize)?;
    mappings::flat_view(lab, &mut vm, "memory", Check::FlatViewAfterRealize)?;
    mappings::no_threads(lab, &vm, Check::NoThreadsAfterRealize)?;
    let paused = vm.age() - paused_from;

    lab.report.step("boot");
    vm.qmp.run("cont", json!({}))?;
    let mut moved = Vec::new();
    vm.wait_ready(|event| moved.push(event.clone()))?;
    mappings::mappings(lab, &mut vm, Check::MappingsAfterBoot)?;

    lab.report.step("reset");
    vm.qmp.run("system_reset", json!({}))?;
    vm.wait_ready(|event| moved.push(event.clone()))?;
    let last = mappings::mappings(lab, &mut vm, Check::MappingsAfterReset)?;
    mappings::no_threads(lab, &vm, Check::NoThreadsAfterReset)?;
    mappings::every_commit(lab, &vm, Check::MappingsAtEveryCommit)?;
    report_data(lab, &moved);

    let mut facts = count::facts(&vm, &last)?;
    let first_output = vm.first_output().context("L2 wrote nothing on its console")?;
    facts.first_output_ms = Some((first_output - paused).as_millis() as u64);
    count::witnesses_agree(lab, &vm, &facts, Check::WitnessesAgree)?;
    if job.mode == Mode::Fast {
        count::stats_agree(lab, &mut vm, &mut facts, Check::StatsAgree)?;
        report_saving(lab, &vm, &facts)?;
    }
    lab.report.send(&Record::Facts(facts));
    if job.sandboxed {
        sandbox::report(lab, &mut vm, Check::ThreadsInSandbox)?;
    }
    if job.ram == Ram::Preallocated && job.mode == Mode::Fast {
        report_passed_over(lab, &mut vm)?;
    }

    match (job.container, job.mode) {
        (Container::Type1, _) => {}
        (Container::Iommufd, Mode::Fast) => {
            by_descriptor::memory(lab, &vm, Check::MemoryMappedByFile)?;
            by_descriptor::bars(lab, &vm, Check::BarMappedAsDmaBuf)?;
        }
        // By address it maps no device memory.
        (Container::Iommufd, _) => {
            p2p_warning::one_warning(lab, &vm.stderr()?, 0, "-14 (Bad address)", Check::OneWarning)
        }
    }

    let cpr_blocked = job.mode == Mode::Fast && !cpr::is_possible(&mut vm)?;
    if cpr_blocked {
        cpr::is_blocked(lab, &mut vm, true, Check::CprBlocked)?;
    }

    lab.report.step("unplug");
    requests::unplug(lab, &mut vm, "dut")?;
    mappings::nothing_mapped(lab, &vm, Check::NothingMappedAfterUnplug)?;
    mappings::unmapped_before_leaving(lab, &vm, Check::UnmappedBeforeLeaving)?;
    if cpr_blocked {
        cpr::is_blocked(lab, &mut vm, false, Check::CprNotBlockedAfterUnplug)?;
    }

    lab.report.step("plug again");
    plug_again(lab, &mut vm)?;
    // On x86, two-devices shows how QEMU ends.
    if cfg!(target_arch = "aarch64") {
        return exit::quit(lab, vm, pinned, Check::Quit);
    }
    vm.quit().map(drop)
}

/// Checks that nothing was left to fault in of RAM that QEMU has populated itself.
fn report_passed_over(lab: &Lab, vm: &mut Vm) -> Result<()> {
    /// The firmware's and the video memory's.
    const LEFT: u64 = 32 << 20;
    let stats = count::library_stats(vm)?;
    let stat = |name: &str| stats[name].as_u64().with_context(|| format!("the library counts no {name}"));
    let (present, faulted) = (stat("populate_present")?, stat("populate_bytes")?);
    let seen = format!("{present} bytes were present, {faulted} were faulted in");
    // Of the first MiB, firmware takes some away.
    let right = present >= (lab.job.l2_memory_mib - 1) << 20 && faulted <= LEFT;
    lab.report.expect(Check::PreallocatedPassedOver, right, &seen);
    Ok(())
}

/// Plugs the device into the running guest again, which then reads data once more.
fn plug_again(lab: &Lab, vm: &mut Vm) -> Result<()> {
    /// QEMU has reported that the device is deleted, and frees it a little later.
    const FREED_WITHIN: Duration = Duration::from_secs(60);
    let mut device = devices::to_add(lab, 0, lab.job.mode);
    device["id"] = "dut".into();
    device["bus"] = "rp0".into();
    wait_for("the device to come back", FREED_WITHIN, || {
        Ok(match vm.qmp.attempt("device_add", device.clone())? {
            Ok(_) => Seen::Done(()),
            Err(refusal) => Seen::NotYet(format!("QEMU refuses it: {}", refusal.0)),
        })
    })?;
    let (_, written) = DiskLayout::of_mib(lab.job.disk_mib).written_by(0);
    let is_read = |event: &Event| matches!(event, Event::Moved { bytes, .. } if *bytes == written);
    vm.wait_event("the data to be read once more", is_read)?;
    lab.report.check(Check::DataAfterPlug, &[], &format!("{written} bytes read and right"));
    mappings::mappings(lab, vm, Check::MappingsAfterPlug)?;
    mappings::no_threads(lab, vm, Check::NoThreadsAfterPlug)
}

/// Checks what the library saves: memory is mapped once, and what does not change is not touched.
fn report_saving(lab: &Lab, vm: &Vm, facts: &Facts) -> Result<()> {
    let ratio = facts.ram_map_bytes as f64 / facts.wanted_ram_bytes as f64;
    let seen = format!("{ratio:.4} = {} / {}", facts.ram_map_bytes, facts.wanted_ram_bytes);
    lab.report.expect(Check::RamAmplification, ratio <= 1.02, &format!("{seen}, at most 1.02"));

    // Between the legacy hole and the end of low RAM nothing ever changes, so no byte of it may
    // be mapped twice or unmapped at all.
    let Range { start, end } = MACHINE.steady_ram(lab.job.l2_memory_mib);
    let calls = vm.witnessed()?;
    let touching = |iova: u64, size: u64| iova < end && iova + size > start;
    let mapped: u64 = calls
        .iter()
        .filter(|c| c.mapped() && touching(c.iova, c.size))
        .map(|c| (c.iova + c.size).min(end) - c.iova.max(start))
        .sum();
    let mut problems = Vec::new();
    if mapped != end - start {
        problems.push(format!("[{start:#x}, {end:#x}) was mapped {mapped} bytes in all"));
    }
    for call in calls.iter().filter(|c| c.unmapped() && c.out > 0 && touching(c.iova, c.size)) {
        problems.push(format!("unmap of {:#x} + {:#x} touches it", call.iova, call.size));
    }
    let seen = format!("[{start:#x}, {end:#x}) was mapped once and never unmapped");
    lab.report.check(Check::EqualPiecesUntouched, &problems, &seen);
    Ok(())
}

/// Checks that L2 read the expected data, over memory on both sides of the border.
fn report_data(lab: &Lab, moved: &[Event]) {
    let (mut reads, mut writes, mut low, mut high, mut most_slots) = (0, 0, u64::MAX, 0, 0);
    for event in moved {
        if let Event::Moved { what, bytes, lowest, highest, slots } = event {
            match what.as_str() {
                "read" => reads += bytes,
                _ => writes += bytes,
            }
            low = low.min(*lowest);
            high = high.max(*highest);
            most_slots = most_slots.max(*slots);
        }
    }
    let seen = format!(
        "{reads} bytes read and right, {writes} written, DMA between {low:#x} and {high:#x}, \
         up to {most_slots} slots of 64 MiB"
    );
    let mut problems = Vec::new();
    let quarter = (lab.job.disk_mib << 20) / 4;
    if reads != 3 * quarter || writes < 2 * quarter - (1 << 20) {
        problems.push(format!("less data than planned: {seen}"));
    }
    let border = MACHINE.border;
    if low >= border || high < border {
        problems.push(format!("memory on one side of {border:#x} was never used: {seen}"));
    }
    lab.report.check(Check::Data, &problems, &seen);
}
