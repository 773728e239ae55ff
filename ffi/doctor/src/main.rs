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
mod size;
mod user;
mod vfio;

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use ask::Ask;
use host::Host;
use report::Report;

const AFTER: &str = "\
Verdicts:
  fine    nothing to do
  better  it works, but slower or with less
  BLOCKS  a guest with a passed-through device does not start

A line after > is what mends it: a command, or what to change. The report is about this user, this shell and this
cgroup: run it as whoever starts QEMU.

JSON:
  version      1; incremented when a field changes its meaning or goes
  can_work     whether nothing blocks
  guest_bytes  --guest in bytes, or null
  devices      --devices
  viommu       --viommu
  findings     a list; each has topic, verdict (\"fine\", \"better\" or \"blocks\"), what, and fix (or null)
Texts and topics may change in any version; can_work and verdict are for programs.

Exit codes:
  0  it can work
  1  something blocks
  2  the arguments are wrong, or nothing could be read";

/// Says whether this host is ready for VFIO passthrough with vfio-fast, what blocks, and what mends it. Changes
/// nothing.
#[derive(Parser)]
#[command(name = "vfio-fast-doctor", version, after_help = AFTER)]
struct Cli {
    /// RAM of the guest, as 512G or 2T
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    guest: Option<u64>,
    /// Number of devices to pass through
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    devices: u64,
    /// The guest has a virtual IOMMU: each device then has a container of its own
    #[arg(long)]
    viommu: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Look at the files below this directory in place of this host's
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    root: PathBuf,
}

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
