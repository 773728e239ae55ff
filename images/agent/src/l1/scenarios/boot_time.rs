//! Starts L2 again and again, filled and mapped by QEMU or by the library in turns, and times it: until L2
//! executes, until its kernel has taken over from the firmware, and from `quit` to the end. Every memory is cold: each start is a
//! new process, and what the one before had is free again.

use anyhow::{Context, Result};
use serde_json::json;
use vfio_fast_protocol::job::{Container, Mode};
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::memory::MemoryKind;
use vfio_fast_protocol::record::{Moment, Order, Record, Start};
use vfio_fast_protocol::scenarios::boot_time::Check;
use vfio_fast_protocol::witness::{self, Call};

use super::background;
use crate::l1::checks::{count, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::{huge_pages, proc};
use crate::machine;

/// RAM of the guests that are started before anything is timed.
const WARM_UP_MIB: u64 = 256;
/// As many as L1 has CPUs, and as the library uses.
const PREALLOC_THREADS: usize = 2;
/// A thread context whose threads may use both CPUs.
const CONTEXT: [&str; 2] = ["-object", "thread-context,id=tc0,cpu-affinity=0-1"];

pub fn run(lab: &Lab) -> Result<()> {
    let mut before = None;
    for &(memory, round) in &lab.job.starts {
        if before != Some(memory) {
            prepare(lab, memory)?;
            before = Some(memory);
        }
        lab.report.step(&format!("{}, round {}", memory.name(), round + 1));
        let mut orders = Order::ALL;
        if round % 2 == 1 {
            // A drift within a round must not always affect the same order.
            orders.reverse();
        }
        for order in orders {
            let name = Start::name_of(memory, order, round);
            let start = one(lab, lab.job.l2_memory_mib, memory, order, round, &name).with_context(|| name)?;
            lab.report.send(&Record::Start(start));
        }
    }
    Ok(())
}

/// Lets this kernel give that memory, and runs each order once with a small guest.
fn prepare(lab: &Lab, memory: MemoryKind) -> Result<()> {
    // QEMU and the library ask for huge pages themselves, both with the same call.
    huge_pages::allow(memory.may_be_huge())?;
    // An emulator translates code when it runs first: the first to be timed would pay for the others.
    for order in Order::ALL {
        let name = format!("{}-{}-warm-up", memory.name(), order.name());
        one(lab, WARM_UP_MIB, memory, order, 0, &name).with_context(|| name)?;
    }
    Ok(())
}

/// One start, until L2's kernel runs.
fn one(lab: &Lab, mib: u64, memory: MemoryKind, order: Order, round: u32, name: &str) -> Result<Start> {
    // As much free memory in one piece for each start, so that huge pages are to be had or not alike.
    machine::set("/proc/sys/vm/drop_caches", "3")?;
    machine::set("/proc/sys/vm/compact_memory", "1")?;
    let mut vm = Vm::start_running(lab, &command_line(lab, mib, memory, order))?;
    let executes = vm.wait_first_output()?.as_nanos() as u64;
    let populate_then = populate_ns(&mut vm, order)?;
    let kernel = vm.wait_console()?.as_nanos() as u64;

    if order == Order::Background {
        background::progress_is(&mut vm, "gate open")?;
    }
    vm.qmp.run("stop", json!({}))?;
    if order != Order::NoDevice {
        // In the background, no other device can access them. QEMU's own code cannot map them through iommufd.
        let without_bars = order == Order::Background
            || lab.job.container == Container::Iommufd && order.mode() != Mode::Fast;
        let check = Check::Mappings(name.to_owned());
        if without_bars {
            mappings::mappings_without_bars(lab, &mut vm, check)?;
        } else {
            mappings::mappings(lab, &mut vm, check)?;
        }
    }
    let calls = vm.witnessed()?;
    let populate_ns = if order.mode() == Mode::Fast { stats_agree(lab, &mut vm, &calls, name)? } else { 0 };
    let started = vm.started_ns();
    let moment = |at_ns: u64, populate_ns| Moment { at_ns, populate_ns, ..moment(&calls, started + at_ns) };
    let held = witness::replay(&calls)?;
    let mut start = Start {
        round,
        order,
        memory,
        greeting_ns: vm.greeting().as_nanos() as u64,
        mapped_ns: mapped_at(&calls, mib << 20).map_or(0, |at| at - started),
        device_ns: device_at(&calls).map_or(0, |at| at - started),
        first_instruction: moment(executes, populate_then),
        kernel: moment(kernel, populate_ns),
        held_bytes: held.values().flatten().map(|(_, mapping)| mapping.size).sum(),
        locked_bytes: locked_bytes(lab, &vm)?,
        shmem_bytes: proc::shmem_bytes(vm.pid)?,
        huge_bytes: proc::huge_bytes(vm.pid)?,
        exit_ns: 0,
    };
    vm.qmp.run("cont", json!({}))?;
    start.exit_ns = vm.quit_timed()?.as_nanos() as u64;
    Ok(start)
}

fn command_line(lab: &Lab, mib: u64, memory: MemoryKind, order: Order) -> CommandLine<'_> {
    let line = CommandLine::new(lab).args(["-smp", "1"]).linux(&L2Job::Idle, "").root_port(0);
    let line = match order {
        Order::Prealloc => line.q35_preallocated(mib, memory.is_memfd(), PREALLOC_THREADS, ""),
        Order::PreallocContext => line.args(CONTEXT).q35_preallocated(
            mib,
            memory.is_memfd(),
            PREALLOC_THREADS,
            ",prealloc-context=tc0",
        ),
        Order::Stock | Order::Fast | Order::Background | Order::NoDevice => {
            line.q35_of_mib(mib, memory.is_memfd())
        }
    };
    match order {
        Order::NoDevice => line,
        _ => line.device_with(0, &format!("id=dut,bus=rp0{}", order.properties()), order.mode()),
    }
}

/// Bytes that the kernel counts as locked or pinned for the device, without its tracepoints, which take time.
fn locked_bytes(lab: &Lab, vm: &Vm) -> Result<u64> {
    match lab.job.container {
        Container::Type1 => proc::locked_bytes(vm.pid),
        Container::Iommufd => proc::pinned_bytes(vm.pid),
    }
}

/// When the calls had mapped so many bytes, on the witness's clock.
fn mapped_at(calls: &[Call], bytes: u64) -> Option<u64> {
    let mut ends: Vec<(u64, u64)> = calls
        .iter()
        .filter(|call| call.mapped())
        .map(|call| (call.start_ns + call.duration_ns, call.size))
        .collect();
    ends.sort_unstable();
    let mut mapped = 0;
    ends.into_iter().find_map(|(at, size)| {
        mapped += size;
        (mapped >= bytes).then_some(at)
    })
}

/// When the guest first turned on the device's bus mastering, on the witness's clock.
fn device_at(calls: &[Call]) -> Option<u64> {
    background::first_start(calls).map(|n| calls[n].start_ns + calls[n].duration_ns)
}

/// The calls that had ended at that time.
fn moment(calls: &[Call], until_ns: u64) -> Moment {
    let mut moment = Moment::default();
    for call in calls.iter().filter(|call| call.start_ns + call.duration_ns <= until_ns) {
        if call.is_map() {
            moment.map_calls += 1;
            moment.map_ns += call.duration_ns;
        } else if call.is_unmap() {
            moment.unmap_calls += 1;
            moment.unmap_ns += call.duration_ns;
        }
        if call.mapped() {
            moment.map_bytes += call.size;
        }
    }
    moment
}

/// What the library spent so far on faulting in.
fn populate_ns(vm: &mut Vm, order: Order) -> Result<u64> {
    if order.mode() != Mode::Fast {
        return Ok(0);
    }
    count::library_stats(vm)?["populate_ns"].as_u64().context("the library reports no populate_ns")
}

/// The check `stats-<name>`: library and ioctl witness counted the same. The answer is what the library alone knows, how
/// long it faulted in.
fn stats_agree(lab: &Lab, vm: &mut Vm, calls: &[Call], name: &str) -> Result<u64> {
    let stats = count::library_stats(vm)?;
    let seen = moment(calls, u64::MAX);
    let pairs =
        [("map_calls", seen.map_calls), ("unmap_calls", seen.unmap_calls), ("map_bytes", seen.map_bytes)];
    let wrong = pairs.iter().filter(|(stat, seen)| stats[stat].as_u64() != Some(*seen));
    let problems: Vec<String> =
        wrong.map(|(stat, seen)| format!("{stat}: witness {seen}, library {}", stats[stat])).collect();
    lab.report.check(Check::Stats(name.to_owned()), &problems, &format!("{pairs:?}"));
    stats["populate_ns"].as_u64().context("the library reports no populate_ns")
}
