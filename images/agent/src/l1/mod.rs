//! L1: hands devices to vfio-pci, runs QEMU, and judges what it maps.

mod conformance;
mod count;
mod devices;
mod dirty;
mod errors;
mod exit;
mod firmware;
mod hotplug;
mod limits;
mod maps;
mod nvme;
mod objects;
mod observe;
mod p2p_data;
mod p2p_range;
mod peer;
mod qemu_trace;
mod qmp;
mod ram;
mod report;
mod sandbox;
mod starts;
mod tracing;
mod two_devices;
mod viommu;
mod viommu_events;
mod virtio_mem;
mod vm;

use std::fs;

use anyhow::{Context, Result};
use vfio_fast_protocol::job::{self, Job, Scenario};
use vfio_fast_protocol::record::{L1_PORT, Record};

use crate::machine;
use report::Reporter;

/// Everything a scenario needs.
pub struct Lab {
    /// What to do.
    pub job: Job,
    /// Where to tell it.
    pub report: Reporter,
}

/// Runs the job of this boot.
pub fn run() -> Result<()> {
    let report = Reporter::new(machine::open_port(L1_PORT)?);
    report.keep_alive();
    let outcome = work(&report);
    if let Err(error) = &outcome {
        report.send(&Record::Fatal { error: format!("{error:#}") });
    }
    match machine::KernelLog::open().and_then(|mut log| log.new_lines()) {
        Ok(lines) => lines.iter().for_each(|line| report.log("l1-dmesg", line)),
        Err(error) => report.log("l1-dmesg", &format!("<3> unreadable: {error:#}")),
    }
    report.send(&Record::End);
    outcome
}

fn work(report: &Reporter) -> Result<()> {
    let text = fs::read(job::PATH).with_context(|| format!("cannot read {}", job::PATH))?;
    let job: Job = serde_json::from_slice(&text).context("the job is not understood")?;
    report.step("set-up");
    for refused in machine::load_modules()? {
        report.log("l1-setup", &format!("module refused by this hardware: {refused}"));
    }
    for address in &job.devices {
        devices::give_to_vfio(address)?;
    }
    // Where time is the result, nothing is counted in the kernel: it costs most where most is mapped. And where no QEMU
    // maps, nothing is there to count.
    if !matches!(job.scenario, Scenario::Starts | Scenario::Conformance | Scenario::Maps) {
        tracing::start()?;
    }
    let lab = Lab { job, report: report.clone() };
    match lab.job.scenario {
        Scenario::Nvme => nvme::run(&lab),
        Scenario::Errors => errors::run(&lab),
        Scenario::Hotplug => hotplug::run(&lab),
        Scenario::P2pData => p2p_data::run(&lab),
        Scenario::P2pRange => p2p_range::run(&lab),
        Scenario::TwoDevices => two_devices::run(&lab),
        Scenario::Viommu => viommu::run(&lab),
        Scenario::VirtioMem => virtio_mem::run(&lab),
        Scenario::Conformance => conformance::run(&lab),
        Scenario::Starts => starts::run(&lab),
        Scenario::Maps => maps::run(&lab),
    }
}
