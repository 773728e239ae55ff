//! The engine's own bench on this machine: what mapping for a device through iommufd costs. Its records go to the host as they
//! are.

use std::io::{BufRead, BufReader};
use std::process::{ChildStderr, ChildStdout, Command, Stdio};
use std::thread;

use anyhow::{Context, Result};

use super::report::Reporter;
use super::{Lab, starts};

const PROGRAM: &str = "/vft/native";
/// The log its records go to.
const RECORDS: &str = "native";
/// Lines of what it says besides that a failure shows.
const SHOWN: usize = 12;

pub fn run(lab: &Lab) -> Result<()> {
    // The program asks for them, or forbids them, itself.
    starts::allow_huge_pages(true)?;
    let mut command = Command::new(PROGRAM);
    command.args(["--device", &lab.job.devices[0]]).args(&lab.job.bench);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {PROGRAM}"))?;
    let records = child.stdout.take().context("no pipe")?;
    let words = child.stderr.take().context("no pipe")?;
    let (told, said) = thread::scope(|scope| {
        let said = scope.spawn(|| show(&lab.report, words));
        (pass_on(&lab.report, records), said.join().expect("shows lines and nothing else"))
    });
    told?;
    let status = child.wait()?;
    let mut problems = Vec::new();
    if !status.success() {
        problems.push(format!("ended with {status}"));
        let said = said?;
        problems.extend_from_slice(&said[said.len().saturating_sub(SHOWN)..]);
    }
    lab.report.check("measured", &problems, "the bench ran to its end");
    Ok(())
}

fn pass_on(report: &Reporter, records: ChildStdout) -> Result<()> {
    for line in BufReader::new(records).lines() {
        report.log(RECORDS, &line?);
    }
    Ok(())
}

/// Its progress is this machine's; the answer is all of it.
fn show(report: &Reporter, words: ChildStderr) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for line in BufReader::new(words).lines() {
        let line = line?;
        report.step(&line);
        lines.push(line);
    }
    Ok(lines)
}
