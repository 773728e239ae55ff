//! L2 is handed over to another QEMU while a disk writes to its memory: first to one that fails, so that the first QEMU
//! takes everything back, and then to one that goes on.
//!
//! Both QEMUs map the same memory files. The kernel's mappings stay as they are, and the new QEMU must know them in
//! their sizes. The source runs on after it has handed over, until it is told to quit, and must not unmap anything.

use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vfio_fast_protocol::job::{Container, Mode};
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::ranges::{self, Reach};
use vfio_fast_protocol::record::Event;
use vfio_fast_protocol::scenarios::cpr::Check;
use vfio_fast_protocol::witness::{self, Call, Mapping, MappingSet};

use crate::l1::checks::{exit, exit_calls, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::faults::{EVERYWHERE, Fault};
use crate::l1::huge_pages;
use crate::l1::lab::Lab;
use crate::l1::proc;
use crate::l1::qemu_files::QemuFiles;
use crate::l1::vm::Vm;
use crate::wait::{Seen, wait_for};

const MAIN: &str = "/run/cpr-main";
const CPR: &str = "/run/cpr";
/// Transfers of data, each checked, before and after L2 is handed over.
const TRANSFERS: usize = 4;

pub fn run(lab: &Lab) -> Result<()> {
    let pinned = exit::pinned_pages()?;
    huge_pages::allow(true)?;
    let mut source = Vm::start(lab, &line(lab, QemuFiles::USUAL))?;
    match lab.job.container {
        Container::Type1 => mappings::mappings(lab, &mut source, Check::MappingsSource).map(drop),
        Container::Iommufd => mappings::mappings_without_bars(lab, &mut source, Check::MappingsSource),
    }?;
    source.qmp.run("cont", json!({}))?;
    transfers(&mut source)?;
    source.qmp.run("migrate-set-parameters", json!({ "mode": "cpr-transfer" }))?;

    if lab.job.container == Container::Type1 && lab.job.mode == Mode::Fast {
        lab.report.step("refused");
        refused(lab, &mut source)?;
    }

    lab.report.step("handed over");
    let before = source.witnessed()?.len();
    let mut destination = hand_over(lab, &mut source, &incoming(lab))??;
    wait_for("the end of the migration", lab.wait(), || {
        let state = source.qmp.run("query-migrate", json!({}))?;
        ensure!(state["status"] != "failed", "the migration failed: {state}");
        let status = destination.qmp.status()?;
        let done = state["status"] == "completed" && status != "inmigrate";
        Ok(Seen::of(done.then_some(()), || format!("{state}, {status}")))
    })?;
    let held = compared(lab, &source, before, &destination)?;
    mappings::no_threads(lab, &destination, Check::NoThreads)?;
    destination.qmp.run("cont", json!({}))?;
    let moved = transfers(&mut destination)?;
    lab.report.expect(Check::MovesDataAtDestination, true, &moved);

    lab.report.step("quit");
    leaves_mappings(lab, source)?;
    transfers(&mut destination)?;
    quit(lab, destination, &held, pinned)
}

fn line(lab: &Lab, files: QemuFiles) -> CommandLine<'_> {
    let mib = lab.job.l2_memory_mib;
    // What is not a file cannot be handed over on iommufd.
    let no_bars = if lab.job.container == Container::Iommufd { ",x-dma-mapper-p2p=off" } else { "" };
    CommandLine::with_files(lab, files)
        .args(["-machine", "q35,memory-backend=ram,aux-ram-share=on", "-m", &format!("{mib}M")])
        .args(["-object", &format!("memory-backend-memfd,share=on,id=ram,size={mib}M")])
        // Only with a way back does the source learn that the destination has failed.
        .args(["-global", "migration.x-return-path=on", "-smp", "1"])
        .root_port(0)
        .device_with(0, &format!("id=dut,bus=rp0{no_bars}"), lab.job.mode)
        .linux(&L2Job::Stream(lab.disk_job(mib / 2)), "")
}

fn incoming(lab: &Lab) -> CommandLine<'_> {
    let channel = |kind| channel(kind).to_string();
    line(lab, QemuFiles::DESTINATION)
        .args(["-incoming", &channel("main")])
        .args(["-incoming", &channel("cpr")])
}

fn channel(kind: &str) -> Value {
    let path = if kind == "cpr" { CPR } else { MAIN };
    json!({ "channel-type": kind, "addr": { "transport": "socket", "type": "unix", "path": path } })
}

/// Starts a QEMU that takes over, and lets the source hand over. The new one has a monitor only after it has received the
/// descriptors. The inner result is that of its start.
fn hand_over(lab: &Lab, source: &mut Vm, line: &CommandLine) -> Result<Result<Vm>> {
    for stale in [MAIN, CPR].into_iter().filter(|path| Path::new(path).exists()) {
        fs::remove_file(stale).with_context(|| format!("cannot remove {stale}"))?;
    }
    thread::scope(|scope| {
        let sent = scope.spawn(|| {
            wait_for("the new QEMU to listen", lab.wait(), || {
                // The other socket is there once the descriptors have arrived.
                Ok(Seen::of(Path::new(CPR).exists().then_some(()), || "no socket".to_owned()))
            })?;
            source.qmp.run("migrate", json!({ "channels": [channel("main"), channel("cpr")] })).map(drop)
        });
        let started = Vm::start(lab, line);
        match sent.join() {
            Ok(sent) => sent?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok(started)
    })
}

/// Hands over to a QEMU that the kernel refuses the second mapping. QEMU's own code does not survive that: it cannot take
/// the first mapping back.
fn refused(lab: &Lab, source: &mut Vm) -> Result<()> {
    let before = source.witnessed()?.len();
    let skipped = 1 << 20;
    let line = incoming(lab).fault(Fault::Full, skipped..=*EVERYWHERE.end(), 1);
    let ended = match hand_over(lab, source, &line)? {
        Ok(mut vm) => vm.wait_exit()?.to_string(),
        Err(error) => format!("{error:#}"),
    };
    let told = fs::read_to_string(QemuFiles::DESTINATION.path("qemu-stderr")).unwrap_or_default();
    let last = told.lines().find(|line| line.contains("ailed")).unwrap_or_default();
    let right = ended.contains("exit status: 1") && told.contains("Cannot allocate memory");
    lab.report.expect(Check::RefusedDestinationEnds, right, &format!("{ended}; {last}"));

    wait_for("the source to notice", lab.wait(), || {
        let state = source.qmp.run("query-migrate", json!({}))?;
        ensure!(state["status"] != "completed", "the source believes that it has handed over: {state}");
        Ok(Seen::of((state["status"] == "failed").then_some(()), || state.to_string()))
    })?;
    let calls = source.witnessed()?;
    let held: MappingSet = the_only_set(&calls)?;
    let mut problems = taken_over(&held, &calls[before..]);
    problems.extend(touched(&calls[before..]));
    lab.report.check(Check::SourceTakesBack, &problems, &format!("{} mappings", held.len()));
    if source.qmp.status()? != "running" {
        source.qmp.run("cont", json!({}))?;
    }
    let moved = transfers(source)?;
    lab.report.expect(Check::MovesDataAfterRefusal, true, &moved);
    Ok(())
}

/// Waits until L2 has moved data several times from now on; it compares what it reads.
fn transfers(vm: &mut Vm) -> Result<String> {
    let mut bytes = 0;
    for _ in 0..TRANSFERS {
        bytes += vm.next_event("L2 to move data", |event| match event {
            Event::Moved { bytes, .. } => Some(*bytes),
            _ => None,
        })?;
    }
    Ok(format!("{bytes} bytes in {TRANSFERS} transfers"))
}

/// What the only container of these calls holds after them.
fn the_only_set(calls: &[Call]) -> Result<MappingSet> {
    let mut all = witness::replay(calls)?.into_values();
    let held = all.next().context("nothing is mapped")?;
    ensure!(all.next().is_none(), "there is more than one container");
    Ok(held)
}

/// What is wrong with how a process took the mappings `held` over with these calls: each once and in its size.
fn taken_over(held: &MappingSet, calls: &[Call]) -> Vec<String> {
    let taken: Vec<&Call> = calls.iter().filter(|call| call.takes_over()).collect();
    let mut problems: Vec<String> = taken
        .iter()
        .filter(|call| held.get(&call.iova).is_none_or(|mapping| mapping.size != call.size))
        .map(|call| format!("{:#x} + {:#x} is no mapping", call.iova, call.size))
        .collect();
    if taken.len() != held.len() {
        problems.push(format!("{} of {} mappings were taken over", taken.len(), held.len()));
    }
    problems
}

/// What these calls mapped or unmapped.
fn touched(calls: &[Call]) -> Vec<String> {
    let touching = calls.iter().filter(|call| call.mapped() || call.unmapped());
    touching.map(|call| format!("{:#x} of {:#x} + {:#x}", call.cmd, call.iova, call.size)).collect()
}

/// Compares what the source held with what the destination took over, and that with L2's memory there; returns it.
fn compared(lab: &Lab, source: &Vm, before: usize, destination: &Vm) -> Result<MappingSet> {
    let (old, new) = (source.witnessed()?, destination.witnessed()?);
    let mut held = the_only_set(&old)?;
    let seen = format!("{} mappings", held.len());
    match lab.job.container {
        Container::Type1 => {
            lab.report.check(Check::TakenOverInTheirSizes, &taken_over(&held, &new), &seen);
        }
        Container::Iommufd => {
            let changes = new.iter().filter(|call| call.changes_process()).count();
            lab.report.expect(Check::ProcessChanged, changes > 0, &format!("{changes} calls, {seen}"));
        }
    }
    let anew = [touched(&old[before..]), touched(&new)].concat();
    lab.report.check(Check::NothingMappedAnew, &anew, &seen);

    for call in new.iter().filter(|call| call.takes_over()) {
        held.entry(call.iova).and_modify(|mapping| mapping.vaddr = call.vaddr);
    }
    let memory = witness::guest_memory(&new);
    ensure!(!memory.is_empty(), "KVM was given no memory: nothing to compare with");
    let wanted = match lab.job.container {
        Container::Type1 => memory,
        Container::Iommufd => mappings::without(&proc::device_memory(destination.pid)?, memory),
    };
    let pages = |set: &MappingSet| set.iter().map(|(at, m)| Reach::writable(*at, m.size)).collect();
    let mut problems = ranges::differences("wanted", pages(&wanted), "mapped", pages(&held));
    if lab.job.container == Container::Type1 {
        problems.extend(mappings::wrong_memory(&wanted, &held));
    }
    lab.report.check(Check::MappingsDestination, &problems, &seen);
    Ok(held)
}

/// Checks that the source, which has handed over, ends without a word to the kernel about mappings or devices.
fn leaves_mappings(lab: &Lab, source: Vm) -> Result<()> {
    let before_quit = source.witnessed()?.len();
    let calls = source.quit()?;
    let problems = exit_calls::left_alone(&calls, before_quit);
    lab.report.check(Check::SourceLeavesMappings, &problems, "no call");
    Ok(())
}

/// Checks that the destination ends like a QEMU that has mapped everything itself.
fn quit(lab: &Lab, destination: Vm, held: &MappingSet, pinned: u64) -> Result<()> {
    let before_quit = destination.witnessed()?.len();
    let calls = destination.quit()?;
    let bytes: u64 = held.values().map(|mapping: &Mapping| mapping.size).sum();
    let unmapped: u64 = calls.iter().filter(|call| call.unmapped()).map(|call| call.out).sum();
    let mapped: u64 = calls.iter().filter(|call| call.mapped()).map(|call| call.size).sum();
    let mut problems = match lab.job.mode {
        Mode::Fast if unmapped == bytes + mapped => Vec::new(),
        Mode::Fast => vec![format!("{unmapped} bytes were unmapped, {bytes} and {mapped} were mapped")],
        _ => exit_calls::left_alone(&calls, before_quit),
    };
    problems.extend(exit::still_pinned(pinned)?);
    lab.report.check(Check::QuitDestination, &problems, &format!("{unmapped} bytes unmapped"));
    Ok(())
}
