//! Starts unpatched QEMU in turns, without the library and preloaded with it, and times it until L2 executes and until its
//! kernel runs. The log `times` has a line for each start.

use anyhow::{Context, Result};
use vfio_fast_protocol::job::Mode;
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::memory::MemoryKind;
use vfio_fast_protocol::scenarios::preload_time::SameCalls;
use vfio_fast_protocol::witness::{self, Call};

use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::{huge_pages, preload};
use crate::machine;

/// RAM of the guests that are started before anything is timed.
const WARM_UP_MIB: u64 = 256;

pub fn run(lab: &Lab) -> Result<()> {
    let mut before = None;
    for &(memory, round) in &lab.job.starts {
        if before != Some(memory) {
            huge_pages::allow(memory.may_be_huge())?;
            // An emulator translates code when it runs first: the first to be timed would pay for the others.
            for preloaded in [false, true] {
                one(lab, WARM_UP_MIB, memory, preloaded, "warm-up")?;
            }
            before = Some(memory);
        }
        lab.report.step(&format!("{}, round {}", memory.name(), round + 1));
        // A drift within a round must not always affect the same one.
        let order = if round % 2 == 0 { [false, true] } else { [true, false] };
        let mut sequences = Vec::new();
        for preloaded in order {
            let calls = one(lab, lab.job.l2_memory_mib, memory, preloaded, &format!("round {}", round + 1))?;
            sequences.push(witness::sequence(&calls));
        }
        // QEMU is ended at any moment while L2 boots, so one of the two has made a few calls more.
        let same = sequences[0].iter().zip(&sequences[1]).take_while(|(one, other)| one == other).count();
        let common = sequences[0].len().min(sequences[1].len());
        let seen = format!("the first {same} of {common} calls are the same");
        let same = same == common && common > 0;
        lab.report.expect(SameCalls(memory, round), same, &seen);
    }
    Ok(())
}

/// One start, until L2's kernel runs. Returns all calls.
fn one(lab: &Lab, mib: u64, memory: MemoryKind, preloaded: bool, round: &str) -> Result<Vec<Call>> {
    // As much free memory in one piece for each start, so that huge pages are to be had or not alike.
    machine::set("/proc/sys/vm/drop_caches", "3")?;
    machine::set("/proc/sys/vm/compact_memory", "1")?;
    let line = CommandLine::new(lab).args(["-smp", "1"]).linux(&L2Job::Idle, "").root_port(0);
    let line = line.q35_of_mib(mib, memory.is_memfd()).device_with(0, "id=dut,bus=rp0", Mode::Reference);
    let line = if preloaded { line.preloaded() } else { line };
    let mut vm = Vm::start_running(lab, &line)?;
    let executes = vm.wait_first_output()?.as_nanos() as u64;
    let kernel = vm.wait_console()?.as_nanos() as u64;
    let started = vm.started_ns();
    let calls = vm.quit()?;
    let until = |ns: u64| -> Vec<Call> {
        let ended = calls.iter().filter(|call| call.start_ns + call.duration_ns <= started + ns);
        ended.cloned().collect()
    };
    let in_calls = |calls: &[Call], is: fn(&Call) -> bool| {
        calls.iter().filter(|call| is(call)).map(|call| call.duration_ns).sum::<u64>() as f64 / 1e9
    };
    let (first, all) = (until(executes), until(kernel));
    let name = if preloaded { "preloaded" } else { "without" };
    lab.report.log(
        "times",
        &format!(
            "{} {mib} MiB {round} {name}: executes {:.3} s, kernel {:.3} s, in map calls {:.3} s and {:.3} s, in unmap \
             calls {:.3} s",
            memory.name(),
            executes as f64 / 1e9,
            kernel as f64 / 1e9,
            in_calls(&first, Call::is_map),
            in_calls(&all, Call::is_map),
            in_calls(&all, Call::is_unmap),
        ),
    );
    if preloaded {
        let summary = preload::summary(preload::SUMMARY);
        summary.lines().for_each(|line| lab.report.log("times", line));
        preload::threads(&summary).context("nothing was faulted in")?;
    }
    Ok(calls)
}
