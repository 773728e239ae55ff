//! The kernel's own tests: programs of its harness, which print a line for each test.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use vfio_fast_protocol::scenarios::kernel_tests::Check;

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

/// The result of one test of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Passed,
    Skipped,
    Failed,
}

type Outcomes = BTreeMap<String, Outcome>;

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
    Ok((text.lines().filter_map(outcome).collect(), output.status.code().unwrap_or(-1)))
}

/// What a line says of a test, as in `ok 3 fixture.variant.test # SKIP why`.
fn outcome(line: &str) -> Option<(String, Outcome)> {
    let (ok, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (_, rest) = rest.split_once(' ')?;
    let (test, remark) = rest.split_once(" # ").unwrap_or((rest, ""));
    let outcome = match (ok, remark.starts_with("SKIP")) {
        (_, true) => Outcome::Skipped,
        (true, false) => Outcome::Passed,
        (false, false) => Outcome::Failed,
    };
    Some((test.trim().to_owned(), outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_harness_are_understood() {
        let of = |line| outcome(line).map(|(test, outcome)| format!("{test}: {outcome:?}"));
        assert_eq!(of("ok 1 iommufd.simple_close").as_deref(), Some("iommufd.simple_close: Passed"));
        assert_eq!(of("not ok 2 a.b.c").as_deref(), Some("a.b.c: Failed"));
        assert_eq!(of("ok 3 a.b.c # SKIP no huge pages").as_deref(), Some("a.b.c: Skipped"));
        assert_eq!(of("#  RUN           iommufd.simple_close ..."), None);
        assert_eq!(of("# PASSED: 3 / 3 tests passed."), None);
    }
}
