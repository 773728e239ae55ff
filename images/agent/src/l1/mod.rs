//! L1: hands devices to vfio-pci, runs QEMU, and judges what it maps.

mod checks;
mod devices;
mod firmware;
mod huge_pages;
mod lab;
mod limits;
mod proc;
mod qemu_trace;
mod qmp;
mod ram;
mod report;
mod requests;
mod scenarios;
mod text_pattern;
mod tracing;
mod vm;

use std::fs;

use anyhow::{Context, Result};
use vfio_fast_protocol::job::{self, Job, Scenario};
use vfio_fast_protocol::record::{L1_PORT, Record};

use crate::machine;
use lab::Lab;
use report::Reporter;
use scenarios::{
    boot_time, conformance, errors, hotplug, map_bench, nvme, p2p_data, p2p_range, two_devices, viommu,
    virtio_mem,
};

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
        Scenario::Starts => boot_time::run(&lab),
        Scenario::Maps => map_bench::run(&lab),
    }
}
