//! The conformance tests on this kernel: programs of the engine's own, each asked for one of its tests.

use std::io::{BufRead, BufReader, pipe};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::json;
use vfio_fast_protocol::checks::CheckName;
use vfio_fast_protocol::scenarios::conformance::Check;

use crate::l1::lab::Lab;

const PROGRAM: &str = "/vft/conformance";
/// What the program prints if one test ran and passed. It also exits with 0 if no test has the name.
const PASSED: &str = "test result: ok. 1 passed; 0 failed;";
/// The number of the program's lines that a failure shows; all are in its log.
const SHOWN: usize = 12;

pub fn run(lab: &Lab) -> Result<()> {
    for test in &lab.job.tests {
        let check: Check = serde_json::from_value(json!(test)).context("no such conformance test")?;
        lab.report.step(test);
        one(lab, check, Command::new(PROGRAM))?;
    }
    Ok(())
}

/// The check named as the test, of the program that `command` starts; its output goes to the log of that name.
pub fn one(lab: &Lab, check: Check, mut command: Command) -> Result<()> {
    let test = &check.name();
    let (reader, writer) = pipe()?;
    command.args(["--ignored", "--exact", "--nocapture", test]).env("VFIO_FAST_DEVICE", &lab.job.devices[0]);
    command.env("VFIO_FAST_SECOND_DEVICE", &lab.job.devices[1]);
    command.env("VFIO_FAST_DEVICES", lab.job.devices.join(" "));
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    // It holds ends of the pipe, which would never be at its end.
    drop(command);
    let mut lines = Vec::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        lab.report.log(&test.replace('_', "-"), &line);
        lines.push(line);
    }
    let status = child.wait()?;
    let passed = status.success() && lines.iter().any(|line| line.starts_with(PASSED));
    let mut problems = Vec::new();
    if !passed {
        problems.push(format!("ended with {status}"));
        let from = lines.iter().position(|line| line.contains("panicked at")).unwrap_or(0);
        problems.extend(lines.drain(..).skip(from).filter(|line| !line.is_empty()).take(SHOWN));
    }
    lab.report.check(check, &problems, "passed");
    Ok(())
}
