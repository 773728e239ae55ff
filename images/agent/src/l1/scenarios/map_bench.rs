//! The engine's own bench on this machine: what mapping for a device through iommufd costs. Its records go to the host as they
//! are.

use std::io::{BufRead, BufReader};
use std::process::{ChildStderr, ChildStdout, Command, Stdio};
use std::thread;

use anyhow::{Context, Result};
use vfio_fast_protocol::scenarios::map_bench::Check;

use crate::l1::lab::Lab;
use crate::l1::report::Reporter;
use crate::l1::{huge_pages, limits};

/// The number of its progress lines that a failure shows.
const SHOWN: usize = 12;
/// A guest of 16 GiB in pages of 4 KiB.
const ENTRIES: u64 = 4 << 20;

pub fn run(lab: &Lab) -> Result<()> {
    // The program asks for them, or forbids them, itself.
    huge_pages::allow(true)?;
    let (name, arguments) = lab.job.bench.split_first().context("the job names no bench")?;
    let program = format!("/vft/{name}");
    // One entry for each page of memory is more than a container takes by default.
    limits::allow_entries(ENTRIES)?;
    let mut command = Command::new(&program);
    command.args(["--device", &lab.job.devices[0]]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    let records = child.stdout.take().context("no pipe")?;
    let words = child.stderr.take().context("no pipe")?;
    let (passed_on, shown) = thread::scope(|scope| {
        let shown = scope.spawn(|| show(&lab.report, words));
        (pass_on(&lab.report, name, records), shown.join().expect("shows lines and nothing else"))
    });
    passed_on?;
    let status = child.wait()?;
    let mut problems = Vec::new();
    if !status.success() {
        problems.push(format!("ended with {status}"));
        let shown = shown?;
        problems.extend_from_slice(&shown[shown.len().saturating_sub(SHOWN)..]);
    }
    lab.report.check(Check::Measured, &problems, "the bench ran to its end");
    Ok(())
}

/// Its records go to a log of its name.
fn pass_on(report: &Reporter, name: &str, records: ChildStdout) -> Result<()> {
    for line in BufReader::new(records).lines() {
        report.log(name, &line?);
    }
    Ok(())
}

/// Reports its progress as steps; returns all of it.
fn show(report: &Reporter, words: ChildStderr) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for line in BufReader::new(words).lines() {
        let line = line?;
        report.step(&line);
        lines.push(line);
    }
    Ok(lines)
}
