//! The kernel's own tests: programs of its harness, which print a line for each test.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use vfio_fast_protocol::scenarios::kernel_tests::Check;
use vfio_fast_protocol::tap::{self, Outcome, Outcomes};

use crate::l1::lab::Lab;
use crate::l1::preload;

/// The programs, and whether they take the address of a device.
const PROGRAMS: [(&str, bool); 6] = [
    ("iommufd", false),
    ("iommufd_fail_nth", false),
    ("vfio_dma_mapping_test", true),
    ("vfio_dma_mapping_mmio_test", true),
    ("vfio_iommufd_setup_test", true),
    ("vfio_pci_device_test", true),
];
/// What the harness exits with if all tests passed, or if all were skipped.
const EXITS: [i32; 2] = [0, 4];

pub fn run(lab: &Lab) -> Result<()> {
    let (mut failed, mut different, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    let (mut passed, mut summaries) = (0, String::new());
    for (program, takes_device) in PROGRAMS {
        let summary = format!("/run/preload-{program}");
        let path = format!("/vft/lib/{program}");
        let run = |mut command: Command, log: String| {
            lab.report.step(&log);
            command.args(takes_device.then_some(&lab.job.devices[0]));
            outcomes(lab, command, &log)
        };
        let (plain, exit) = run(Command::new(&path), program.replace('_', "-"))?;
        let mut preloaded = preload::start(preload::RUN, &summary);
        preloaded.arg(&path);
        let (with, with_exit) = run(preloaded, format!("{}-preloaded", program.replace('_', "-")))?;
        summaries += &preload::summary(&summary);

        let of = |outcome| plain.iter().filter(move |(_, it)| **it == outcome).map(|(test, _)| test.clone());
        failed.extend(of(Outcome::Failed));
        if !EXITS.contains(&exit) || plain.is_empty() {
            failed.push(format!("{program} ended with {exit} after {} tests", plain.len()));
        }
        passed += of(Outcome::Passed).count();
        skipped.extend(of(Outcome::Skipped));
        let missing = plain.iter().filter(|(test, outcome)| with.get(*test) != Some(outcome));
        different.extend(
            missing.map(|(test, outcome)| format!("{test}: {outcome:?} alone, {:?}", with.get(test))),
        );
        if exit != with_exit || with.len() != plain.len() {
            different.push(format!("{program} ended with {with_exit} after {} tests", with.len()));
        }
    }
    let seen = format!("{passed} passed, {} skipped: {}", skipped.len(), skipped.join(", "));
    lab.report.check(Check::TestsPass, &failed, &seen);
    lab.report.check(Check::SameResultsPreloaded, &different, &format!("{passed} passed"));
    summaries.lines().for_each(|line| lab.report.log("preload", line));
    // Most tests run in processes that end with _exit(), and leave no summary.
    let calls = preload::calls(&summaries, "iommufd map");
    lab.report.expect(Check::CallsWentThrough, calls > 0, &format!("{calls} iommufd maps"));
    Ok(())
}

/// The outcome of each test of a program, and its exit code.
fn outcomes(lab: &Lab, mut command: Command, log: &str) -> Result<(Outcomes, i32)> {
    command.stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines().chain(String::from_utf8_lossy(&output.stderr).lines()) {
        lab.report.log(log, line);
    }
    Ok((tap::outcomes(&text), output.status.code().unwrap_or(-1)))
}
