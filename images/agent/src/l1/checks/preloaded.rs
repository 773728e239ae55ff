//! A program that runs twice, without the library and preloaded with it, and the checks of both runs.

use vfio_fast_protocol::checks::CheckName;
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::record::Event;
use vfio_fast_protocol::witness::{self, Call};

use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::preload;

/// The number of differences that a failure shows.
const SHOWN: usize = 6;

/// A QEMU with the device under test, whose L2 boots and moves data.
pub fn line(lab: &Lab, preloaded: bool) -> CommandLine<'_> {
    let data = lab.disk_job(lab.job.l2_memory_mib * 3 / 4);
    let line = CommandLine::new(lab)
        .q35_with_ram()
        .args(["-smp", "1"])
        .root_port(0)
        .device_behind(0, "dut", 0)
        .linux(&L2Job::Disk(data), "");
    if preloaded { line.preloaded() } else { line }
}

/// The summary of the run with the library, which is also logged.
pub fn summary(lab: &Lab) -> String {
    let summary = preload::summary(preload::SUMMARY);
    summary.lines().for_each(|line| lab.report.log("preload", line));
    summary
}

/// Checks that both runs made the same calls in the same order, with the same answers.
pub fn same_calls(lab: &Lab, check: impl CheckName, without: &[Call], with: &[Call]) {
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
    lab.report.check(check, &problems, &format!("{} calls in both", with.len()));
}

/// Checks that the library counted what the witness saw.
pub fn summary_agrees(lab: &Lab, check: impl CheckName, calls: &[Call], summary: &str) {
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
    lab.report.check(check, &problems, &format!("{pairs:?}"));
}

/// Checks that several threads faulted memory in.
pub fn faulted_in(lab: &Lab, check: impl CheckName, summary: &str) {
    let threads = preload::threads(summary).unwrap_or(0);
    let times = preload::calls(summary, "faulted in before");
    let seen = format!("{threads} threads, before {times} map calls");
    lab.report.expect(check, threads >= 2 && times > 0, &seen);
}

/// Checks that L2 read what it had to; it ends with an error where a byte is wrong.
pub fn data(lab: &Lab, check: impl CheckName, moved: &[Event]) {
    let (mut reads, mut writes) = (0, 0);
    for event in moved {
        if let Event::Moved { what, bytes, .. } = event {
            *if what == "read" { &mut reads } else { &mut writes } += bytes;
        }
    }
    let quarter = (lab.job.disk_mib << 20) / 4;
    let right = reads == 3 * quarter && writes >= 2 * quarter - (1 << 20);
    lab.report.expect(check, right, &format!("{reads} bytes read and right, {writes} written"));
}
