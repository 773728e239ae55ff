//! Starts L2 with RAM of 1-GiB pages, mapped by QEMU's listener and by the library, each from an unused pool. L2 does
//! not run.

use std::fs;

use anyhow::{Context, Result, ensure};
use vfio_fast_protocol::job::Mode;
use vfio_fast_protocol::scenarios::giga::Check;
use vfio_fast_protocol::witness;

use crate::l1::checks::{count, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::proc;
use crate::l1::vm::Vm;

const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages";

pub fn run(lab: &Lab) -> Result<()> {
    let pages = lab.job.l2_memory_mib >> 10;
    let mut times = Vec::new();
    for mode in [Mode::Stock, Mode::Fast] {
        lab.report.step(mode.name());
        ensure!(free()? == pages, "L1 has {} 1-GiB pages, {pages} are needed", free()?);
        let line = CommandLine::new(lab)
            .q35_on("memory-backend-memfd,hugetlb=on,hugetlbsize=1G,share=on", lab.job.l2_memory_mib)
            .root_port(0)
            .device_behind_in(0, "dut", 0, mode);
        let mut vm = Vm::start(lab, &line)?;
        times.push(format!("{} {} ms", mode.name(), vm.age().as_millis()));
        mappings::mappings(lab, &mut vm, Check::Mappings)?;
        let left = free()?;
        lab.report.expect(Check::EveryPageUsed, left == 0, &format!("{left} of {pages} pages are unused"));
        if mode == Mode::Fast {
            statistics(lab, &mut vm, &times.join(", "))?;
        }
        vm.quit()?;
        let back = free()?;
        lab.report.expect(Check::PagesReturned, back == pages, &format!("{back} of {pages} pages are free"));
    }
    Ok(())
}

/// What the library counted is what happened: the bytes of the file, once, by two threads.
fn statistics(lab: &Lab, vm: &mut Vm, times: &str) -> Result<()> {
    let stats = count::library_stats(vm)?;
    lab.report.log("stats", &stats.to_string());
    let stat = |name: &str| stats[name].as_u64().with_context(|| format!("the library reports no {name}"));
    let threads = stat("threads_peak")?;
    lab.report.expect(Check::ThreadsUsed, threads == 2, &format!("{threads} threads; {times}"));

    let files = proc::memory_files(vm.pid)?;
    let held = witness::replay(&vm.witnessed()?)?;
    let mapped = held.values().flatten().filter(|(_, mapping)| proc::is_in(&files, mapping.vaddr));
    let ram: u64 = mapped.map(|(_, mapping)| mapping.size).sum();
    let (populated, huge) = (stat("populate_bytes")?, stat("populate_huge")?);
    // The first megabyte is mapped in pieces, but a page is faulted in as a whole. What was unmapped to be mapped again may
    // count twice: whether a small piece is present is not checked.
    let most = (lab.job.l2_memory_mib << 20) + stat("unmap_bytes")?;
    let seen =
        format!("{ram} bytes of RAM are mapped, {populated} were faulted in, {huge} are in huge pages");
    lab.report.expect(
        Check::PopulatedOnce,
        ram > 0 && (ram..=most).contains(&populated) && huge >= ram,
        &seen,
    );
    Ok(())
}

fn free() -> Result<u64> {
    fs::read_to_string(FREE)?.trim().parse().with_context(|| format!("{FREE} has no number"))
}
