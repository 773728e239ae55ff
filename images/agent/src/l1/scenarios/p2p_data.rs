//! Peer-to-peer DMA: one device moves data in and out of another's BAR, which is mapped as a whole and never populated.

use anyhow::{Context, Result};
use vfio_fast_protocol::bar_layout::BarLayout;
use vfio_fast_protocol::checks::CheckName;
use vfio_fast_protocol::job::{Container, Mode};
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::record::{Event, Facts, Record};
use vfio_fast_protocol::scenarios::p2p_data::Check;
use vfio_fast_protocol::witness::{self, Call, Mapping, MappingSet};

use crate::l1::checks::{count, mappings, p2p_warning};
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::proc;
use crate::l1::vm::Vm;
use crate::pci::Device;

const GIB: u64 = 1 << 30;
/// What a device here has its memory in.
const MEMORY_BAR: usize = 2;
/// The device with the engine, the one whose BAR it reaches, and one with a BAR to be mapped.
const IDS: [&str; 3] = ["dut", "target", "large"];

pub fn run(lab: &Lab) -> Result<()> {
    let job = &lab.job;
    // Firmware puts large BARs at the end of what the processor can address. With 40 bits that is what AMD's IOMMU reserves
    // for HyperTransport, and refuses.
    let mut line = CommandLine::new(lab).q35_with_ram().args(["-cpu", "max,host-phys-bits-limit=39"]);
    for (n, id) in IDS.into_iter().enumerate().take(job.devices.len()) {
        line = line.device(n, id);
    }
    let line = match job.maps_bars() {
        true => line.linux(&L2Job::Peer { image_seed: job.image_seed, write_seed: job.write_seed }, ""),
        false => line.linux(&L2Job::Idle, ""),
    };

    lab.report.step("realize");
    let mut vm = Vm::start(lab, &line)?;
    mappings::mappings(lab, &mut vm, Check::MappingsAfterRealize)?;

    lab.report.step("boot");
    vm.qmp.run("cont", serde_json::json!({}))?;
    let mut moved = Vec::new();
    vm.wait_ready(|event| moved.push(event.clone()))?;

    lab.report.step("look");
    let wanted = mappings::mappings(lab, &mut vm, Check::MappingsAfterData)?;
    mappings::flat_view(lab, &mut vm, "memory", Check::FlatViewAfterData)?;
    mappings::every_commit(lab, &vm, Check::MappingsAtEveryCommit)?;
    mappings::no_threads(lab, &vm, Check::NoThreadsAfterData)?;
    let calls = vm.witnessed()?;
    let slots = witness::guest_memory(&calls);
    if job.maps_bars() {
        report_data(lab, &slots, &moved, Check::Data)?;
        report_entries(lab, &vm, &slots, &calls)?;
    }
    match (job.container, job.mode) {
        (Container::Type1, _) => {}
        // The registers of the second device are less than a page: of that there is no dma-buf.
        (Container::Iommufd, Mode::Fast) => {
            p2p_warning::one_warning(lab, &vm.stderr()?, 1, "-22 (Invalid argument)", Check::OneWarning)
        }
        (Container::Iommufd, _) => {
            p2p_warning::one_warning(lab, &vm.stderr()?, 0, "-14 (Bad address)", Check::OneWarning)
        }
    }

    let mut facts = count::facts(&vm, &wanted)?;
    count::witnesses_agree(lab, &vm, &facts, Check::WitnessesAgree)?;
    if job.mode == Mode::Fast {
        count::stats_agree(lab, &mut vm, &mut facts, Check::StatsAgree)?;
        report_populated(lab, &mut vm, &facts)?;
    }
    lab.report.send(&Record::Facts(facts));
    vm.quit().map(drop)
}

/// The check on the data: L2 told that all was read as expected and all written, in the BAR that the guest has. What was
/// written, the host compares.
pub fn report_data(lab: &Lab, slots: &MappingSet, moved: &[Event], check: impl CheckName) -> Result<()> {
    let bytes = Device::at(&lab.job.devices[1]).bar(MEMORY_BAR)?.bytes;
    let layout = BarLayout { bytes };
    let planned = |places: Vec<u64>| places.len() as u64 * BarLayout::CHUNK;
    let (read, written) = (planned(layout.read()), planned(layout.written()));
    let reported = moved.iter().filter(|event| matches!(event, Event::Peer { .. })).collect::<Vec<_>>();
    let place = slots.iter().find(|(_, slot)| slot.size == bytes).map(|(gpa, _)| *gpa);
    let bar = place.context("the guest has no memory of the BAR's size")?;
    let expected = Event::Peer { bar, read, written };
    lab.report.expect(check, reported == [&expected], &format!("{reported:?}, expected {expected:?}"));
    Ok(())
}

/// The check `bars-in-whole-entries`: wherever the guest had a large BAR, it was mapped in as few calls as can be, each
/// between addresses that agree as far as superpages go.
fn report_entries(lab: &Lab, vm: &Vm, slots: &MappingSet, calls: &[Call]) -> Result<()> {
    let held = witness::replay(calls)?.into_values().next().context("nothing is mapped")?;
    let bars = proc::device_memory(vm.pid)?;
    let (mut problems, mut seen) = (Vec::new(), Vec::new());
    for device in &lab.job.devices[1..] {
        let bytes = Device::at(device).bar(MEMORY_BAR)?.bytes;
        let is_bar = |slot: &Mapping| slot.size == bytes && proc::is_in(&bars, slot.vaddr);
        let Some((gpa, slot)) = slots.iter().find(|(_, slot)| is_bar(slot)) else {
            problems.push(format!("{device}: KVM has no memory of its BAR's {bytes:#x} bytes"));
            continue;
        };
        let piece = entry_bytes(lab, bytes);
        let expected: Vec<(u64, u64, u64)> =
            (0..bytes).step_by(piece as usize).map(|at| (gpa + at, slot.vaddr + at, piece)).collect();
        let found: Vec<(u64, u64, u64)> =
            held.range(*gpa..gpa + bytes).map(|(iova, entry)| (*iova, entry.vaddr, entry.size)).collect();
        if found != expected {
            problems.push(format!("{device}: mapped as {found:x?}, expected {expected:x?}"));
        }
        let ours = |call: &&Call| call.is_map() && (slot.vaddr..slot.vaddr + bytes).contains(&call.vaddr);
        let maps: Vec<&Call> = calls.iter().filter(ours).collect();
        for map in &maps {
            if map.size != piece || map.distance() % piece.min(GIB) != 0 {
                problems.push(format!(
                    "{device}: {:#x} bytes mapped at {:#x} from {:#x}",
                    map.size, map.iova, map.vaddr
                ));
            }
        }
        let calls = expected.len();
        seen.push(format!("{bytes:#x} bytes at {gpa:#x} in {calls} calls, {} times", maps.len() / calls));
    }
    lab.report.check(Check::BarsInWholeEntries, &problems, &seen.join(", "));
    Ok(())
}

/// How much of a BAR of that size is mapped by one call.
fn entry_bytes(lab: &Lab, bar: u64) -> u64 {
    match (lab.job.mode, lab.job.container) {
        // The library's entries on type1; a dma-buf is mapped as a whole.
        (Mode::Fast, Container::Type1) => bar.min(GIB),
        _ => bar,
    }
}

/// The check `bars-not-populated`: the library has faulted in no more memory than the RAM it mapped, and has tried no more
/// often: the kernel refuses device memory, which is no byte faulted in, and still a call.
fn report_populated(lab: &Lab, vm: &mut Vm, facts: &Facts) -> Result<()> {
    /// What the library faults in with one call.
    const CHUNK: u64 = 16 << 20;
    let stats = count::library_stats(vm)?;
    let stat = |name: &str| stats[name].as_u64().with_context(|| format!("the library reports no {name}"));
    let touched = stat("populate_bytes")? + stat("populate_present")? + stat("populate_skipped")?;
    let tried = stat("populate_calls")?;
    let bars = proc::device_memory(vm.pid)?;
    let calls = vm.witnessed()?;
    let ram = calls.iter().filter(|call| call.mapped() && !proc::is_in(&bars, call.vaddr));
    let chunks: u64 = ram.map(|call| call.size / CHUNK + 1).sum();
    let seen = format!(
        "{touched} bytes populated, found present or skipped, {} of RAM mapped; {tried} calls for {chunks} chunks",
        facts.ram_map_bytes
    );
    let right = touched == facts.ram_map_bytes && tried <= chunks;
    lab.report.expect(Check::BarsNotPopulated, right, &seen);
    Ok(())
}
