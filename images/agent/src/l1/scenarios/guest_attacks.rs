//! A guest that drives its devices past its kernel: `edu`s read and write at the edges of what QEMU has mapped for them,
//! in between, and where memory was until it was unplugged.
//!
//! What the devices may reach is what QEMU's memory map says. Whether they reached it is seen in the memory itself, which
//! this machine reads past QEMU.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vfio_fast_protocol::attack::{Access, PAGE, SLOT};
use vfio_fast_protocol::flatview::{self, Row};
use vfio_fast_protocol::host::Iommu;
use vfio_fast_protocol::job::Container;
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::ranges::{self, Reach};
use vfio_fast_protocol::record::Event;
use vfio_fast_protocol::scenarios::guest_attacks::Check;
use vfio_fast_protocol::witness;

use super::hotplug;
use super::virtio_mem::{self, BLOCK, MIB, Region};
use crate::l1::attacker::{self, Attacker, Case, Home, Place, Tally};
use crate::l1::checks::mappings;
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::{proc, qemu_trace, requests};

/// RAM below 4 GiB; the rest is above.
const LOW: u64 = 512 * MIB;
const HIGH_START: u64 = 4 << 30;
const DIMM_MIB: u64 = 128;
/// The maximum of the virtio-mem device, and what is plugged of it, first and in the end.
const BLOCKS_MIB: u64 = 256;
const PLUGGED_MIB: u64 = 64;
const LEFT_MIB: u64 = 32;
/// What the firmware copies itself into.
const SHADOW: (u64, u64) = (0xa_0000, 0x10_0000);
/// Where a write is an interrupt.
const INTERRUPTS: (u64, u64) = (0xfee0_0000, 0xfef0_0000);
/// The address bits of L1's IOMMU, but for AMD-Vi.
const IOMMU_BITS: u32 = 48;
/// What Linux keeps away from at the ends of RAM, in KiB.
const KEPT_FREE: u64 = 64;
/// What has the memory in a BAR, and which BAR.
const MEMORY_DEVICE: usize = 3;
const MEMORY_BAR: usize = 2;
/// Registers of emulated devices that are attacked.
const REGISTERS: usize = 8;

pub fn run(lab: &Lab) -> Result<()> {
    let job = &lab.job;
    let share = if job.container == Container::Iommufd { "on" } else { "off" };
    let high_end = HIGH_START + job.l2_memory_mib * MIB - LOW;
    let kept_free = [1 << 20, HIGH_START, high_end - (KEPT_FREE << 10)];
    let kept_free: Vec<String> = kept_free.iter().map(|at| format!("memmap={KEPT_FREE}K${at:#x}")).collect();
    // Memory that is not onlined holds nothing of Linux.
    let options = format!("memhp_default_state=offline {}", kept_free.join(" "));
    let line = CommandLine::new(lab)
        .q35(&format!(",max-ram-below-4g={LOW}"), ",slots=2,maxmem=8G")
        .args([
            "-object",
            &format!("memory-backend-ram,id=blocks,size={BLOCKS_MIB}M,reserve=off,share={share}"),
        ])
        .args([
            "-device",
            &format!("virtio-mem-pci,id=vmem,memdev=blocks,block-size={BLOCK},requested-size={PLUGGED_MIB}M"),
        ])
        .device(0, "dut")
        .device(1, "dut1")
        .device(2, "dut2")
        .device(MEMORY_DEVICE, "memory")
        .trace(&["virtio_mem_*"]);
    let line = attacker::with_port(line).linux(&L2Job::Attack { seed: job.write_seed }, &options);
    let mut vm = Vm::start(lab, &line)?;
    let region = Region::of(&mut vm)?;
    let mut attacker = Attacker::new(lab, &vm)?;

    lab.report.step("boot");
    vm.qmp.run("cont", json!({}))?;
    vm.wait_event("L2 to begin", |event| matches!(event, Event::Up { .. }))?;
    virtio_mem::settled(&mut vm, PLUGGED_MIB, lab.wait())?;
    let rows = rows(lab, &mut vm)?;
    know_the_guest(lab, &mut vm, &mut attacker, &region, &rows)?;
    permit_blocks(&mut attacker, &region, PLUGGED_MIB)?;
    let mut cases = of_ram(&attacker, high_end);
    cases.extend(of_devices(lab, &attacker, &rows)?);
    cases.extend(of_the_ends(job.iommu));
    let blocks = region.address();
    cases.push(case(Check::Blocks, &[blocks, blocks + BLOCK, blocks + PLUGGED_MIB * MIB], Tally::of(12, 24)));
    attacker.attack(&mut vm, cases)?;

    // Between the blocks that are plugged and this one are those that are not.
    let dimm = blocks + BLOCKS_MIB * MIB;
    let edges = [dimm, dimm + DIMM_MIB * MIB];
    hotplug::plug(lab, &mut vm, 1, DIMM_MIB, Some(dimm))?;
    know_dimm(&vm, &mut attacker, dimm)?;
    attacker.attack(&mut vm, vec![case(Check::Dimm, &edges, Tally::of(12, 12))])?;

    requests::unplug(lab, &mut vm, "dimm1")?;
    attacker.forbid(dimm, DIMM_MIB * MIB);
    // Its memory is still in QEMU, and must not change.
    attacker.attack(&mut vm, vec![case(Check::RemovedDimm, &edges, Tally::of(24, 0))])?;
    attacker.remove(dimm);
    vm.qmp.run("object-del", json!({ "id": "mem1" }))?;
    attacker.attack(&mut vm, vec![case(Check::FreedDimm, &edges, Tally::of(24, 0))])?;

    hotplug::plug(lab, &mut vm, 2, DIMM_MIB, Some(dimm))?;
    know_dimm(&vm, &mut attacker, dimm)?;
    attacker.attack(&mut vm, vec![case(Check::OtherDimmInItsPlace, &edges, Tally::of(12, 12))])?;

    region.resize(lab, &mut vm, LEFT_MIB)?;
    attacker.forbid(blocks, BLOCKS_MIB * MIB);
    permit_blocks(&mut attacker, &region, LEFT_MIB)?;
    let edges = [blocks + LEFT_MIB * MIB, blocks + PLUGGED_MIB * MIB];
    attacker.attack(&mut vm, vec![case(Check::RemovedBlocks, &edges, Tally::of(18, 6))])?;

    let plugged = virtio_mem::plugged(&qemu_trace::text()?)?;
    let there = |memory| region.without_unplugged(memory, &plugged);
    mappings::mappings_of(lab, &mut vm, Check::MappingsInTheEnd, 1, there)?;
    vm.quit().map(drop)
}

/// Accesses around edges, each named by the first address after it.
fn case(check: Check, edges: &[u64], expected: Tally) -> Case<Check> {
    let accesses = edges.iter().flat_map(|edge| Access::around(u128::from(*edge))).collect();
    Case { check, accesses, writes: true, expected: Some(expected) }
}

/// The memory map of the guest.
fn rows(lab: &Lab, vm: &mut Vm) -> Result<Vec<Row>> {
    let text = mappings::quietly(vm, |vm| vm.qmp.human("info mtree -f"))?;
    text.lines().for_each(|line| lab.report.log("mtree", line));
    flatview::rows_of(&text, "memory").context("no flat view renders `memory`")
}

fn is_memory_of_device(lab: &Lab, row: &Row) -> bool {
    row.bar() == Some((&lab.job.devices[MEMORY_DEVICE], MEMORY_BAR))
}

/// What is where in the guest, and what of it devices may reach, but for the blocks of virtio-mem.
fn know_the_guest(
    lab: &Lab,
    vm: &mut Vm,
    attacker: &mut Attacker,
    region: &Region,
    rows: &[Row],
) -> Result<()> {
    let bars = proc::device_memory(vm.pid)?;
    for (at, slot) in witness::guest_memory(&vm.witnessed()?) {
        if !proc::is_in(&bars, slot.vaddr) {
            attacker.place(Place { at, bytes: slot.size, home: Home::Host(slot.vaddr) });
        }
    }
    for row in rows.iter().filter(|row| is_memory_of_device(lab, row)) {
        attacker.place(Place { at: row.start, bytes: row.last - row.start + 1, home: Home::Bar });
    }
    let rows = rows.iter().filter(|row| row.start != region.address());
    let reach = mappings::reachable(lab, rows);
    ranges::normalise(reach).into_iter().for_each(|reach| attacker.permit(reach));
    Ok(())
}

/// Permits the blocks of virtio-mem that are plugged: the first so many MiB.
fn permit_blocks(attacker: &mut Attacker, region: &Region, mib: u64) -> Result<()> {
    let plugged = virtio_mem::plugged(&qemu_trace::text()?)?;
    let first: BTreeSet<u64> = (0..mib * MIB / BLOCK).map(|n| region.address() + n * BLOCK).collect();
    ensure!(plugged == first, "other blocks are plugged than the first {mib} MiB: {plugged:x?}");
    plugged.into_iter().for_each(|at| attacker.permit(Reach::writable(at, BLOCK)));
    Ok(())
}

/// The DIMM that was plugged there is memory of the guest.
fn know_dimm(vm: &Vm, attacker: &mut Attacker, at: u64) -> Result<()> {
    let slot = witness::guest_memory(&vm.witnessed()?).remove(&at);
    let slot = slot.context("KVM has no memory where the DIMM is")?;
    ensure!(slot.size == DIMM_MIB * MIB, "KVM has {:#x} bytes of the DIMM", slot.size);
    attacker.place(Place { at, bytes: slot.size, home: Home::Host(slot.vaddr) });
    attacker.permit(Reach::writable(at, slot.size));
    Ok(())
}

/// RAM and the firmware's memory.
fn of_ram(attacker: &Attacker, high_end: u64) -> Vec<Case<Check>> {
    let mut cases = vec![
        case(Check::StartOfRam, &[0], Tally::of(0, 4)),
        case(Check::EndOfLowRam, &[LOW], Tally::of(6, 6)),
        case(Check::EndOfHighRam, &[high_end], Tally::of(6, 6)),
    ];
    // Where permissions change, which depends on the firmware.
    let at_an_edge = |edge: &u64| {
        [false, true]
            .iter()
            .any(|write| attacker.reached(*edge, *write) != attacker.reached(edge - 1, *write))
    };
    let edges = |first: u64, last: u64| -> Vec<u64> {
        (first..=last).step_by(PAGE as usize).filter(at_an_edge).collect()
    };
    let shadow = case(Check::FirmwareShadow, &edges(SHADOW.0, SHADOW.1), Tally::default());
    cases.push(Case { expected: None, ..shadow });
    // The ROM ends where RAM above 4 GiB begins. Beside it devices may write on one side, and only read on the other.
    let rom = edges(INTERRUPTS.1, HIGH_START);
    cases.push(case(Check::ReadOnlyFirmware, &rom, Tally::of(12, 12)));

    let in_hole =
        [LOW + 64 * MIB, 0x8000_0000, 0xb000_0000, 0xe000_0000, 0xfec0_0000, 0xfed0_0000, 0xff00_0000];
    let accesses = in_hole.map(|at| Access { at, bytes: SLOT }).to_vec();
    let expected = Some(Tally::of(2 * in_hole.len() as u64, 0));
    cases.push(Case { check: Check::HoleBelow4Gib, accesses, writes: true, expected });
    cases
}

/// The BARs of devices.
fn of_devices(lab: &Lab, attacker: &Attacker, rows: &[Row]) -> Result<Vec<Case<Check>>> {
    // An emulated device does not take what devices of the host send.
    let emulated = rows.iter().filter(|row| {
        let bytes = row.last - row.start + 1;
        row.kind == "i/o"
            && row.start > LOW
            && bytes >= SLOT
            && !(INTERRUPTS.0..INTERRUPTS.1).contains(&row.start)
    });
    let accesses: Vec<Access> =
        emulated.take(REGISTERS).map(|row| Access { at: row.start, bytes: SLOT }).collect();
    let expected = Some(Tally::of(2 * accesses.len() as u64, 0));
    let mut cases = vec![Case { check: Check::EmulatedDevices, accesses, writes: true, expected }];

    // Devices of the host reach each other's registers, which are no memory: only what is around them is attacked.
    let registers = rows.iter().filter(|row| row.is_device() && !is_memory_of_device(lab, row));
    let registers = ranges::normalise(registers.filter_map(Row::reach).collect());
    let edges = registers.iter().flat_map(|reach| [u128::from(reach.start), u128::from(reach.last) + 1]);
    let is_register = |at: u64| registers.iter().any(|reach| (reach.start..=reach.last).contains(&at));
    let outside = |access: &Access| {
        access.parts().all(|(_, part)| !is_register(part.at) && !attacker.reached(part.at, false))
    };
    let accesses: Vec<Access> = edges.flat_map(Access::around).filter(outside).collect();
    let expected = Some(Tally::of(2 * accesses.len() as u64, 0));
    cases.push(Case { check: Check::DeviceRegisters, accesses, writes: true, expected });

    let memory = rows.iter().find(|row| is_memory_of_device(lab, row)).context("the BAR is not there")?;
    let expected = if lab.job.maps_bars() { Tally::of(12, 12) } else { Tally::of(24, 0) };
    cases.push(case(Check::MemoryOfDevice, &[memory.start, memory.last + 1], expected));
    Ok(cases)
}

/// Interrupts, and the last addresses.
fn of_the_ends(iommu: Iommu) -> Vec<Case<Check>> {
    let (first, next) = INTERRUPTS;
    let places = [(first - 2, 2), (first - PAGE - SLOT, SLOT), (next, 1), (next + PAGE, SLOT)];
    let access = |(at, bytes)| Access { at, bytes };
    let mut cases = vec![Case {
        check: Check::AroundInterrupts,
        accesses: places.map(access).to_vec(),
        writes: true,
        expected: Some(Tally::of(8, 0)),
    }];
    // A write there is a request to interrupt a processor, which the IOMMU does not look up in its page tables. One
    // that remaps no interrupts does not look up reads there either.
    let inside = [(first, 4), (first + PAGE, SLOT), (next - 4, 4)];
    if iommu.remaps_interrupts() {
        cases.push(Case {
            check: Check::InterruptsAreNotRead,
            accesses: inside.map(access).to_vec(),
            writes: false,
            expected: Some(Tally::of(3, 0)),
        });
    }
    let (ends, refused): (&[u128], u64) = match iommu {
        Iommu::Intel | Iommu::Virtio | Iommu::Smmu => (&[1 << IOMMU_BITS, 1 << 64], 16),
        // Page tables of AMD-Vi have as many levels as the addresses need that are mapped. An IOMMU refuses an address
        // with more bits. QEMU's model of it ignores these bits, and finds the start of RAM at 1 << 48.
        Iommu::Amd => (&[1 << 64], 4),
    };
    cases.push(Case {
        check: Check::EndsOfAddressSpace,
        accesses: ends.iter().flat_map(|end| Access::around(*end)).collect(),
        writes: true,
        expected: Some(Tally::of(refused, 0)),
    });
    cases
}
