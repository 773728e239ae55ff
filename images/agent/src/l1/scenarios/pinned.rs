//! Starts L2 with a QEMU that may use both CPUs of L1, then with one that is pinned to the first, without and with the
//! properties for the library's threads; in cgroups that allow one CPU; and with a real-time policy. L2 does
//! not run.

use anyhow::{Context, Result};
use vfio_fast_protocol::scenarios::pinned::Check;

use crate::l1::cgroups::{self, Group};
use crate::l1::checks::{count, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::cpus::{self, BOTH_CONTEXT, BOTH_PROPERTY};
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::{devices, proc, qemu_trace};

/// Scheduling policies.
const USUAL: &str = "0";
const FIFO: &str = "1";

pub fn run(lab: &Lab) -> Result<()> {
    let both = one(lab, "")?;
    both.threads(lab, Check::FreeUsesBoth, 2);
    lab.report.expect(Check::FreeSaysNothing, both.said.is_empty(), &format!("{:?}", both.said));

    one(lab, ",x-dma-mapper-threads=1")?.threads(lab, Check::ThreadsPropertyUsesOne, 1);

    // QEMU inherits what this thread may use.
    cpus::allow(&[0])?;
    let pinned = one(lab, "")?;
    pinned.threads(lab, Check::PinnedUsesOne, 1);
    let says_why =
        matches!(&pinned.said[..], [line] if line.contains("1 of 2 CPUs") && line.contains("affinity"));
    lab.report.expect(Check::PinnedSaysWhy, says_why, &format!("{:?}", pinned.said));
    // More threads than CPUs would be slower.
    one(lab, ",x-dma-mapper-threads=2")?.threads(lab, Check::ThreadsPropertyAddsNone, 1);
    one(lab, BOTH_PROPERTY)?.threads(lab, Check::ContextPropertyUsesBoth, 2);
    cpus::allow(&[0, 1])?;

    cgroups::enable(&["cpu", "cpuset"])?;
    let quota = Group::new("quota")?;
    quota.set("cpu.max", "100000 100000")?;
    limited(lab, &quota, [Check::QuotaUsesOne, Check::QuotaSaysWhy], "CPU quota")?;
    let cpuset = Group::new("cpuset")?;
    cpuset.set("cpuset.cpus", "0")?;
    limited(lab, &cpuset, [Check::CpusetUsesOne, Check::CpusetSaysWhy], "affinity")?;
    real_time(lab)
}

/// QEMU in a group that allows one CPU.
fn limited(lab: &Lab, group: &Group, [uses_one, says_why]: [Check; 2], why: &str) -> Result<()> {
    let limited = cgroups::within(group, || one(lab, ""))?;
    limited.threads(lab, uses_one, 1);
    let says = matches!(&limited.said[..], [line] if line.contains("1 of 2 CPUs") && line.contains(why));
    lab.report.expect(says_why, says, &format!("{:?}", limited.said));
    Ok(())
}

/// QEMU whose threads have a real-time policy, which threads inherit.
fn real_time(lab: &Lab) -> Result<()> {
    lab.report.step("real-time policy");
    let line =
        CommandLine::new(lab).real_time().q35_on("memory-backend-ram", lab.job.l2_memory_mib).root_port(0);
    let mut vm = Vm::start(lab, &line)?;
    let mut device = devices::to_add(lab, 0, lab.job.mode);
    device["id"] = "dut".into();
    device["bus"] = "rp0".into();
    let (added, workers) = proc::watch_library_threads(vm.pid, || vm.qmp.run("device_add", device));
    added?;
    let threads = count::library_stats(&mut vm)?["threads_peak"].as_u64();
    lab.report.expect(Check::RealTimeUsesBoth, threads == Some(2), &format!("{threads:?} threads"));
    let own = proc::threads(vm.pid)?;
    let of_qemu = own.iter().any(|thread| thread.policy == FIFO);
    // A thread that has just started may be seen before it gives up the policy.
    let usual = |name: &str| workers.iter().any(|thread| thread.name == name && thread.policy == USUAL);
    let of_library = !workers.is_empty() && workers.iter().all(|thread| usual(&thread.name));
    let seen = format!("QEMU: {own:?}, the library: {workers:?}");
    lab.report.expect(Check::RealTimeStaysWithQemu, of_qemu && of_library, &seen);
    vm.quit().map(drop)
}

/// What the library did and said.
struct Seen {
    threads: u64,
    /// Its messages about the number of threads.
    said: Vec<String>,
}

impl Seen {
    fn threads(&self, lab: &Lab, check: Check, expected: u64) {
        let Self { threads, said } = self;
        lab.report.expect(check, *threads == expected, &format!("{threads} threads; it said {said:?}"));
    }
}

/// Starts QEMU with these properties of its device, and ends it.
fn one(lab: &Lab, properties: &str) -> Result<Seen> {
    lab.report.step(&format!("start{properties}"));
    let line = CommandLine::new(lab)
        .trace(&["vfio_dma_mapper_log"])
        .args(BOTH_CONTEXT)
        .q35_on("memory-backend-ram", lab.job.l2_memory_mib)
        .root_port(0)
        .device_with(0, &format!("id=dut,bus=rp0{properties}"), lab.job.mode);
    let mut vm = Vm::start(lab, &line)?;
    mappings::mappings(lab, &mut vm, Check::Mappings)?;
    let threads = count::library_stats(&mut vm)?["threads_peak"].as_u64();
    let said = qemu_trace::text()?.lines().filter(|line| line.contains(" CPUs")).map(str::to_owned).collect();
    vm.quit()?;
    Ok(Seen { threads: threads.context("the library reports no threads_peak")?, said })
}
