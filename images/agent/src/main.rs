//! PID 1 of the test machines: in L1 it runs QEMU and judges it, in L2 it moves and checks data.

mod l1;
mod l2;
mod machine;
mod pagemap;
mod pci;
mod wait;

use anyhow::{Context, Result, bail};

fn main() {
    // Whatever happens, the machine must end: a host waiting for a hung guest learns nothing.
    if let Err(error) = run() {
        eprintln!("vfio-fast-agent: {error:#}");
    }
    machine::power_off();
}

fn run() -> Result<()> {
    machine::mount_all().context("cannot mount the kernel's file systems")?;
    let options = machine::kernel_options()?;
    match options.get("vft.role").map(String::as_str) {
        Some("l1") => l1::run(),
        Some("l2") => l2::run(&options),
        other => bail!("the kernel command line has no vft.role=l1 or l2, but {other:?}"),
    }
}
