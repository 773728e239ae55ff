//! The example of the Rust crate, with a device whose DMA engine copies some of the memory that the example maps.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use vfio_fast_protocol::scenarios::rust_example::Check;

use crate::l1::lab::Lab;

const PROGRAM: &str = "/vft/guest_memory";
/// What the example prints for each copy that is as the memory is, and the number of copies.
const COPIED: (&str, usize) = ("the device copied 4096 bytes of the guest's memory", 2);

pub fn run(lab: &Lab) -> Result<()> {
    let mut command = Command::new(PROGRAM);
    command.arg(&lab.job.devices[0]).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().for_each(|line| lab.report.log("rust-example", line));

    let last = text.lines().last().unwrap_or_default();
    lab.report.expect(Check::ExampleSucceeds, output.status.success(), &format!("{}: {last}", output.status));
    let copies = text.lines().filter(|line| *line == COPIED.0).count();
    lab.report.expect(Check::DeviceCopiedGuestMemory, copies == COPIED.1, &format!("{copies} copies"));
    Ok(())
}
