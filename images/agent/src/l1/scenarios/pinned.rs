//! Starts L2 with a QEMU that may use both CPUs of L1, then with one that is pinned to the first, without and with the
//! properties that allow the library's threads more. L2 does not run.

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_setaffinity};
use vfio_fast_protocol::scenarios::pinned::Check;

use crate::l1::checks::{count, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::qemu_trace;
use crate::l1::vm::Vm;

/// A thread context whose threads may use both CPUs.
const CONTEXT: [&str; 2] = ["-object", "thread-context,id=tc0,cpu-affinity=0-1"];

pub fn run(lab: &Lab) -> Result<()> {
    let both = one(lab, "")?;
    both.threads(lab, Check::FreeUsesBoth, 2);
    lab.report.expect(Check::FreeSaysNothing, both.said.is_empty(), &format!("{:?}", both.said));

    // QEMU inherits what this thread may use.
    allow(&[0])?;
    let pinned = one(lab, "")?;
    pinned.threads(lab, Check::PinnedUsesOne, 1);
    let says_why =
        matches!(&pinned.said[..], [line] if line.contains("1 of 2 CPUs") && line.contains("affinity"));
    lab.report.expect(Check::PinnedSaysWhy, says_why, &format!("{:?}", pinned.said));
    one(lab, ",x-dma-mapper-threads=2")?.threads(lab, Check::ThreadsPropertyUsesBoth, 2);
    one(lab, ",x-dma-mapper-context=tc0")?.threads(lab, Check::ContextPropertyUsesBoth, 2);
    allow(&[0, 1])
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
        .args(CONTEXT)
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

/// Lets this thread, and what it starts from now on, use these CPUs.
fn allow(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    sched_setaffinity(None, &set).context("cannot choose CPUs")
}
