//! Starts L2 with RAM that has no memory policy, mapped by QEMU's listener and by the library, and counts its pages by
//! node. L2 does not run. Stock allocates each page on the node of the thread that maps it, QEMU's main thread, which
//! is bound to a CPU of node 0. If the scheduler could move it, its pages would be on both nodes. The library's threads
//! may use both CPUs.

use std::fs;

use anyhow::{Context, Result, ensure};
use vfio_fast_protocol::job::Mode;
use vfio_fast_protocol::scenarios::placement::Check;

use crate::l1::checks::{count, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::cpus::{self, BOTH_CONTEXT, BOTH_PROPERTY};
use crate::l1::huge_pages;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::machine;

const PAGE: u64 = 4096;
/// The kernel takes a huge page from the other node if node 0 has none left: up to one page in this many.
const STRAYS: u64 = 10;

pub fn run(lab: &Lab) -> Result<()> {
    // QEMU inherits what this thread may use.
    cpus::allow(&[0])?;
    for (huge, check) in [(false, Check::SmallPagesTogether), (true, Check::HugePagesTogether)] {
        lab.report.step(if huge { "huge pages" } else { "small pages" });
        huge_pages::allow(huge)?;
        let stock = one(lab, Mode::Stock)?;
        let fast = one(lab, Mode::Fast)?;
        let pages = (lab.job.l2_memory_mib << 20) / PAGE;
        let allowed = stock[1].max(pages / STRAYS);
        let seen = format!("pages on node 0 and node 1: stock {stock:?}, fast {fast:?}");
        lab.report.expect(check, fast[1] <= allowed, &seen);
    }
    Ok(())
}

/// Starts QEMU and ends it; the pages of RAM on each node.
fn one(lab: &Lab, mode: Mode) -> Result<[u64; 2]> {
    machine::set("/proc/sys/vm/drop_caches", "3")?;
    let threads = if mode == Mode::Fast { BOTH_PROPERTY } else { "" };
    let line = CommandLine::new(lab)
        .args(BOTH_CONTEXT)
        .q35_on("memory-backend-ram", lab.job.l2_memory_mib)
        .root_port(0)
        .device_with(0, &format!("id=dut,bus=rp0{threads}"), mode);
    let mut vm = Vm::start(lab, &line)?;
    mappings::mappings(lab, &mut vm, Check::Mappings)?;
    if mode == Mode::Fast {
        let threads = count::library_stats(&mut vm)?["threads_peak"].as_u64().unwrap_or(0);
        lab.report.expect(Check::BothNodesWork, threads == 2, &format!("{threads} threads faulted in"));
    }
    let nodes = pages_by_node(vm.pid, (lab.job.l2_memory_mib << 20) / PAGE)?;
    vm.quit()?;
    Ok(nodes)
}

/// The pages of the mapping that has this many, by node.
fn pages_by_node(pid: u32, pages: u64) -> Result<[u64; 2]> {
    let text = fs::read_to_string(format!("/proc/{pid}/numa_maps")).context("no numa_maps")?;
    for line in text.lines() {
        let on = |node: &str| -> u64 {
            let field = line.split(' ').find_map(|field| field.strip_prefix(node));
            field.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let nodes = [on("N0="), on("N1=")];
        if nodes[0] + nodes[1] >= pages {
            ensure!(line.split(' ').nth(1) == Some("default"), "RAM has a policy: {line}");
            return Ok(nodes);
        }
    }
    anyhow::bail!("no mapping has {pages} pages:\n{text}")
}
