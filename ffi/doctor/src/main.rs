//! Says whether a host is ready for VFIO passthrough with vfio-fast: `vfio-fast-doctor --help`.
//!
//! One file for each topic. It reads files and changes nothing; it opens no device.

mod ask;
mod cgroup;
mod cpus;
mod devices;
mod finding;
mod host;
mod huge_pages;
mod iommu;
mod kernel;
mod libvirt;
mod limits;
mod memory;
mod numa;
mod ranges;
mod report;
mod reserved;
mod size;
mod user;
mod vfio;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use vfio_fast_cli::doctor::Cli;

use ask::Ask;
use host::Host;
use report::Report;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Prints the report; whether nothing blocks.
fn run(cli: &Cli) -> Result<bool> {
    let readable = cli.root.join("proc/self/status").exists();
    ensure!(readable, "{}: no /proc to read", cli.root.display());
    let ask = Ask { guest: cli.guest, devices: cli.devices, viommu: cli.viommu };
    let report = Report::new(&Host::new(&cli.root), &ask);
    let text = if cli.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.text() };
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough, such as head.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written.context("Cannot print the report")?,
    }
    Ok(report.can_work())
}
