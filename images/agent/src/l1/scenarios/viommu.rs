//! L2 has an IOMMU of its own: RAM is mapped as a whole only while L2's IOMMU is off, and what its
//! driver maps later goes one by one. Each of two devices has an address space, and so a container, of its own.

use anyhow::{Context, Result};
use serde_json::json;
use vfio_fast_protocol::job::{Container, DiskLayout, Mode};
use vfio_fast_protocol::l2_job::{DiskJob, L2Job};
use vfio_fast_protocol::record::{Event, Record};
use vfio_fast_protocol::scenarios::viommu::Check;
use vfio_fast_protocol::witness::{self, MappingSet};

use crate::l1::checks::{
    count, dirty_bitmap, mappings,
    viommu_events::{self, TRACED},
};
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::{qemu_trace, requests};

/// The size of the second disk, which L2 writes and reads as a whole.
const SECOND_MIB: u64 = 1;
/// QEMU's event for a map that is one of a vIOMMU.
const LEAF: &str = "vfio_dma_mapper_leaf_map";

/// A boot of L2, and its checks.
struct Boot {
    step: &'static str,
    /// The command of QEMU's that starts it.
    command: &'static str,
    /// What L2 reads and writes of the first disk.
    bytes: u64,
    switched: Check,
    data: Check,
    no_threads: Check,
}

/// The IOMMU that L2 has.
pub struct Guest {
    /// QEMU's device.
    pub device: &'static str,
    /// What the kernel needs to use it.
    pub options: &'static str,
    /// Whether QEMU's trace names the entries of its page tables.
    pub traced: bool,
}

pub fn run(lab: &Lab) -> Result<()> {
    with(
        lab,
        &Guest { device: "intel-iommu,intremap=on,caching-mode=on", options: "intel_iommu=on", traced: true },
    )
}

pub fn with(lab: &Lab, guest: &Guest) -> Result<()> {
    let job = &lab.job;
    let data = DiskJob { second_mib: Some(SECOND_MIB), ..lab.disk_job(job.l2_memory_mib / 2) };
    let mut traced = TRACED.to_vec();
    if job.mode == Mode::Fast {
        traced.push(LEAF);
    }
    let line = CommandLine::new(lab)
        .q35(",kernel-irqchip=split", "")
        .args(["-device", guest.device])
        .device(0, "dut")
        .root_port(0)
        .device_behind(1, "dut1", 0)
        .trace(&traced)
        .linux(&L2Job::Disk(data), &format!("{} iommu=nopt iommu.strict=1", guest.options));
    let mut vm = Vm::start(lab, &line)?;
    mappings::mappings_of(lab, &mut vm, Check::MappingsAfterRealize, 2, Ok)?;

    let disk = DiskLayout::of_mib(job.disk_mib);
    let boots = [
        Boot {
            step: "boot",
            command: "cont",
            bytes: disk.read_by(0).1 + disk.written_by(0).1,
            switched: Check::SwitchedBoot,
            data: Check::DataBoot,
            no_threads: Check::NoThreadsBoot,
        },
        Boot {
            step: "reset",
            command: "system_reset",
            bytes: disk.written_by(0).1 + disk.read_by(1).1 + disk.written_by(1).1,
            switched: Check::SwitchedReset,
            data: Check::DataReset,
            no_threads: Check::NoThreadsReset,
        },
    ];
    for boot in boots {
        lab.report.step(boot.step);
        let before = vm.witnessed()?.len();
        vm.qmp.run(boot.command, json!({}))?;
        let mut bytes = 0;
        vm.wait_ready(|event| {
            if let Event::Moved { bytes: moved, .. } = event {
                bytes += moved;
            }
        })?;
        report_switch(lab, &vm, boot.switched, before)?;
        // The second disk is written and read.
        let planned = boot.bytes + 2 * (SECOND_MIB << 20);
        lab.report.expect(boot.data, bytes == planned, &format!("{bytes} of {planned} bytes moved"));
        mappings::no_threads(lab, &vm, boot.no_threads)?;
    }
    // Only L2's driver knows what it wants mapped, so what is mapped stands for it. Only sizes count here: both containers
    // have mappings of the same addresses.
    let mapped = witness::replay(&vm.witnessed()?)?;
    let wanted: MappingSet = (0..).zip(mapped.values().flatten().map(|(_, mapping)| *mapping)).collect();
    let mut facts = count::facts(&vm, &wanted)?;
    count::witnesses_agree(lab, &vm, &facts, Check::WitnessesAgree)?;
    if lab.job.mode == Mode::Fast {
        count::stats_agree_of(lab, &mut vm, &mut facts, &["dut", "dut1"], Check::StatsAgree)?;
    }
    lab.report.send(&Record::Facts(facts));

    lab.report.step("unplug");
    unplug_second(lab, &mut vm, disk.written_by(0).1)?;
    let (trace, calls) = mappings::quietly(&mut vm, |vm| Ok((qemu_trace::text()?, vm.witnessed()?)))?;
    let (seen, check) = if guest.traced {
        (viommu_events::compare(&trace, &calls)?, Check::EventsOneToOne)
    } else {
        (viommu_events::compare_maps(&trace, &calls)?, Check::MapsInOrder)
    };
    let text = format!("{} maps, {} unmaps, {} others", seen.maps, seen.unmaps, seen.other);
    if !seen.problems.is_empty() {
        trace.lines().for_each(|line| lab.report.log("qemu-trace", line));
    }
    lab.report.check(check, &seen.problems, &text);
    if lab.job.mode == Mode::Fast {
        report_leaves(lab, &trace);
    }
    // Only the library asks for what fits a bitmap: without it QEMU refuses to unmap an address space at once.
    if (lab.job.container, lab.job.mode) == (Container::Type1, Mode::Fast) {
        dirty_bitmap::run(lab, &mut vm, Check::UnmappedWithBitmap)?;
    }
    vm.quit().map(drop)
}

/// Checks that QEMU passes each map of L2's IOMMU to the library as one that is never cut or joined, and whose failure is
/// not fatal.
fn report_leaves(lab: &Lab, trace: &str) {
    let count = |name: &str, text: &str| {
        trace.lines().filter(|line| line.starts_with(name) && line.contains(text)).count()
    };
    let (events, leaves) = (count("vfio_iommu_map_notify ", "iommu MAP"), count(LEAF, ""));
    let seen = format!("{events} maps of L2's IOMMU, {leaves} were passed as such");
    lab.report.expect(Check::MapsAreLeaves, events > 0 && leaves == events, &seen);
}

/// Unplugs one device, and checks that the other one's mappings stay and still work.
fn unplug_second(lab: &Lab, vm: &mut Vm, read: u64) -> Result<()> {
    let calls = mappings::quietly(vm, |vm| vm.witnessed())?;
    let first = calls.iter().find(|call| call.mapped()).context("nothing was ever mapped")?.space();
    let before = witness::replay(&calls)?;
    requests::unplug(lab, vm, "dut1")?;
    let after = witness::replay(&mappings::quietly(vm, |vm| vm.witnessed())?)?;
    let left = after.iter().filter(|(space, _)| **space != first).flat_map(|(_, held)| held);
    let mut problems: Vec<String> =
        left.map(|(iova, m)| format!("still mapped: {iova:#x} + {:#x}", m.size)).collect();
    if before.len() != 2 {
        problems.push(format!("before, {} containers had mappings", before.len()));
    }
    lab.report.check(Check::SecondUnmapped, &problems, "its container holds nothing");

    let (none, all) = (MappingSet::new(), before.get(&first).cloned().unwrap_or_default());
    let kept = after.get(&first).unwrap_or(&none);
    let missing = all.iter().filter(|(iova, mapping)| kept.get(iova) != Some(mapping));
    let mut problems: Vec<String> =
        missing.map(|(iova, m)| format!("gone: {iova:#x} + {:#x}", m.size)).collect();
    if all.is_empty() {
        problems.push("the first device had no mappings".to_owned());
    }
    lab.report.check(Check::FirstLeftAlone, &problems, &format!("its {} mappings are there", all.len()));

    let is_read = |event: &Event| matches!(event, Event::Moved { bytes, .. } if *bytes == read);
    vm.wait_event("the data to be read once more", is_read)?;
    lab.report.check(Check::DataAfterUnplug, &[], &format!("{read} bytes read and right"));
    Ok(())
}

/// Checks that all RAM is unmapped before the first mapping of L2's driver when that takes over, and
/// that from then on there are single small mappings only.
fn report_switch(lab: &Lab, vm: &Vm, check: Check, before: usize) -> Result<()> {
    /// No driver maps that much at once; RAM is far larger.
    const LARGE: u64 = 16 << 20;
    let calls = vm.witnessed()?;
    // After the last large map, RAM goes for good: large unmaps first, small maps only then.
    let last_large = calls.iter().rposition(|c| c.mapped() && c.size >= LARGE);
    let from = last_large.map_or(before, |n| n + 1).max(before);
    let gone = calls[from..].iter().rposition(|c| c.unmapped() && c.out >= LARGE);
    let mut problems = Vec::new();
    let Some(gone) = gone.map(|n| from + n) else {
        lab.report.expect(check, false, "RAM was never unmapped");
        return Ok(());
    };
    // Memory where the guest has it, mapped by the listener, and not by L2's driver.
    let distances = witness::memory_distances(&calls);
    let by_driver = |c: &&witness::Call| c.mapped() && !distances.contains(&c.distance());
    let early = calls[from..gone].iter().filter(by_driver).count();
    if early > 0 {
        problems.push(format!("{early} maps by L2's driver before RAM was gone"));
    }
    let small = calls[gone..].iter().filter(by_driver).count();
    if small == 0 {
        problems.push("L2's driver mapped nothing".to_owned());
    }
    let late = calls[gone..].iter().filter(|c| c.mapped()).count() - small;
    if late > 0 {
        problems.push(format!("{late} maps by the listener after RAM was gone"));
    }
    let bytes: u64 = witness::replay(&calls)?.values().flatten().map(|(_, m)| m.size).sum();
    if bytes >= LARGE {
        problems.push(format!("{bytes} bytes are mapped at the end"));
    }
    let seen = format!("{small} mappings by L2's driver, {bytes} bytes at the end");
    lab.report.check(check, &problems, &seen);
    Ok(())
}
