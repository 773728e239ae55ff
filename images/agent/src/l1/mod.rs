//! L1: hands devices to vfio-pci, runs QEMU, and judges what it maps.

mod apparmor;
mod attacker;
mod bus_master;
mod cgroups;
mod checks;
mod command_line;
mod cpus;
mod debian;
mod devices;
mod events;
mod failing_allocations;
mod faults;
mod firmware;
mod guest_machine;
mod huge_pages;
mod lab;
mod libvirt;
mod limits;
mod numbers;
mod preload;
mod proc;
mod qemu_files;
mod qemu_trace;
mod qmp;
mod real_time;
mod report;
mod requests;
mod scenarios;
mod text_pattern;
mod tracing;
mod vm;
mod vmstat;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use vfio_fast_protocol::job::{self, Job};
use vfio_fast_protocol::record::{L1_PORT, Record};

use crate::machine;
use lab::Lab;
use report::Reporter;

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
    accept_any_tsc()?;
    if job.debian {
        debian::enter()?;
    }
    for address in &job.devices {
        devices::give_to_vfio(address)?;
    }
    if job.counted {
        tracing::start()?;
    }
    scenarios::run(&Lab { job, report: report.clone() })
}

/// Lets KVM accept that the frequency of the TSC was measured twice, with different results.
///
/// KVM gives L2 the frequency that was measured first. On a busy host that measurement can be off by more than KVM's
/// tolerance of 250 ppm from the refined one. The emulated CPU cannot scale the TSC, so KVM then prints "user requested TSC
/// rate below hardware speed" and leaves L2 with a scaling ratio of 0, with which its timers are late by minutes.
fn accept_any_tsc() -> Result<()> {
    const TOLERANCE: &str = "/sys/module/kvm/parameters/tsc_tolerance_ppm";
    if !Path::new(TOLERANCE).exists() {
        return Ok(());
    }
    fs::write(TOLERANCE, "100000").with_context(|| format!("cannot write {TOLERANCE}"))
}
