//! Starts unpatched QEMU twice, without the library and preloaded with it. L2 boots and moves data each time; to it, the
//! second start is its second boot.

use anyhow::Result;
use serde_json::json;
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::record::Event;
use vfio_fast_protocol::scenarios::preload::Check;
use vfio_fast_protocol::witness::{self, Call};

use crate::l1::checks::mappings;
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::{huge_pages, preload};

/// The number of differences that a failure shows.
const SHOWN: usize = 6;

pub fn run(lab: &Lab) -> Result<()> {
    huge_pages::allow(true)?;
    let mut moved = Vec::new();
    lab.report.step("without");
    let without = one(lab, false, &mut moved)?;
    lab.report.step("preloaded");
    let with = one(lab, true, &mut moved)?;
    let summary = preload::summary(preload::SUMMARY);
    summary.lines().for_each(|line| lab.report.log("preload", line));

    same_calls(lab, &without, &with);
    summary_agrees(lab, &with, &summary);
    let threads = preload::threads(&summary).unwrap_or(0);
    let times = preload::calls(&summary, "faulted in before");
    let seen = format!("{threads} threads, before {times} map calls");
    lab.report.expect(Check::FaultedInByThreads, threads >= 2 && times > 0, &seen);
    data(lab, &moved);
    Ok(())
}

/// One QEMU; returns every call that it made.
fn one(lab: &Lab, preloaded: bool, moved: &mut Vec<Event>) -> Result<Vec<Call>> {
    let data = lab.disk_job(lab.job.l2_memory_mib * 3 / 4);
    let line = CommandLine::new(lab)
        .q35_with_ram()
        .args(["-smp", "1"])
        .root_port(0)
        .device_behind(0, "dut", 0)
        .linux(&L2Job::Disk(data), "");
    let line = if preloaded { line.preloaded() } else { line };
    let mut vm = Vm::start(lab, &line)?;
    if preloaded {
        mappings::no_threads(lab, &vm, Check::NoThreadsAfterRealize)?;
    }
    vm.qmp.run("cont", json!({}))?;
    vm.wait_ready(|event| moved.push(event.clone()))?;
    if preloaded {
        mappings::no_threads(lab, &vm, Check::NoThreadsAfterBoot)?;
    }
    let check = if preloaded { Check::MappingsPreloaded } else { Check::MappingsWithout };
    mappings::mappings(lab, &mut vm, check)?;
    vm.quit()
}

/// Checks that both runs made the same calls in the same order, with the same answers.
fn same_calls(lab: &Lab, without: &[Call], with: &[Call]) {
    let [without, with] = [without, with].map(witness::sequence);
    let mut problems = Vec::new();
    for (n, (one, other)) in without.iter().zip(&with).enumerate().filter(|(_, (one, other))| one != other) {
        problems.push(format!("call {n}: {one}, preloaded {other}"));
    }
    problems.truncate(SHOWN);
    if without.len() != with.len() {
        problems.push(format!("{} calls, preloaded {}", without.len(), with.len()));
    }
    if without.is_empty() {
        problems.push("no calls at all".to_owned());
    }
    lab.report.check(Check::SameCalls, &problems, &format!("{} calls in both", with.len()));
}

/// Checks that the library counted what the witness saw.
fn summary_agrees(lab: &Lab, calls: &[Call], summary: &str) {
    let counted = |names: [&str; 2]| names.map(|name| preload::calls(summary, name)).iter().sum::<u64>();
    let pairs = [
        ("map", calls.iter().filter(|call| call.is_map()).count(), counted(["type1 map", "iommufd map"])),
        (
            "unmap",
            calls.iter().filter(|call| call.is_unmap()).count(),
            counted(["type1 unmap", "iommufd unmap"]),
        ),
    ];
    let wrong = pairs.iter().filter(|(_, seen, counted)| *seen as u64 != *counted);
    let problems: Vec<String> =
        wrong.map(|(what, seen, counted)| format!("{what}: witness {seen}, library {counted}")).collect();
    lab.report.check(Check::SummaryAgrees, &problems, &format!("{pairs:?}"));
}

/// Checks that L2 read what it had to; it ends with an error where a byte is wrong.
fn data(lab: &Lab, moved: &[Event]) {
    let (mut reads, mut writes) = (0, 0);
    for event in moved {
        if let Event::Moved { what, bytes, .. } = event {
            *if what == "read" { &mut reads } else { &mut writes } += bytes;
        }
    }
    let quarter = (lab.job.disk_mib << 20) / 4;
    let right = reads == 3 * quarter && writes >= 2 * quarter - (1 << 20);
    lab.report.expect(Check::Data, right, &format!("{reads} bytes read and right, {writes} written"));
}
