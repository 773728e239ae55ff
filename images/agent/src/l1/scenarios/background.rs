//! The guest starts before its memory is mapped, and waits when it turns on the bus mastering of its device.
//!
//! To fault in 16 MiB takes the library half a second longer than it would, so that the guest comes first. Most
//! guests here are a firmware of a few instructions, which turns it on at once; one is a Linux that moves data.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::ranges::{self, Reach};
use vfio_fast_protocol::record::Event;
use vfio_fast_protocol::scenarios::background::Check;
use vfio_fast_protocol::witness::{self, Call, MappingSet};

use crate::l1::bus_master::{self, SLOT, Width};
use crate::l1::checks::{exit, exit_calls, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::faults::{self, Fault};
use crate::l1::firmware;
use crate::l1::lab::Lab;
use crate::l1::qemu_trace;
use crate::l1::requests;
use crate::l1::scenarios::hotplug;
use crate::l1::vm::Vm;
use crate::wait::{Seen, wait_for};

const MIB: u64 = 1 << 20;
/// RAM that is mapped by itself, and in the background.
const RAM: RangeInclusive<u64> = 16 * MIB..=u64::MAX;
/// Where firmware puts BARs below 4 GiB: the guests have no RAM there.
const BARS: Range<u64> = 0xc000_0000..0xfec0_0000;
const ALWAYS: u64 = u64::MAX;
/// Far longer than it takes.
const SOON: Duration = Duration::from_secs(120);

const WAITING: &str = "dma-mapping";
/// QEMU's event for a write to a command register that is held.
pub(super) const HELD: &str = "vfio_dma_gate_hold";

pub fn run(lab: &Lab) -> Result<()> {
    for (width, check) in [
        (Width::Byte, Check::Byte),
        (Width::Word, Check::Word),
        (Width::Long, Check::Long),
        (Width::Mirror, Check::Mirror),
    ] {
        each_width(lab, width, check)?;
    }
    reset(lab)?;
    stop(lab)?;
    quit(lab)?;
    kill(lab)?;
    fail(lab)?;
    never_started(lab)?;
    unplug(lab)?;
    linux(lab)
}

fn line(lab: &Lab) -> CommandLine<'_> {
    line_with(lab, 0, "")
}

/// A guest with that device of the job, which has further properties after a comma.
fn line_with<'a>(lab: &'a Lab, device: usize, properties: &str) -> CommandLine<'a> {
    let properties = format!("id=dut,addr=0x{SLOT},x-dma-mapper-background=on{properties}");
    CommandLine::new(lab)
        .trace(&["vfio_dma_gate_*", "vfio_dma_mapper_filled", "vfio_dma_mapper_wait"])
        .q35("", ",slots=1,maxmem=8G")
        .args(["-smp", "2"])
        .device_with(device, &properties, lab.job.mode)
}

/// A guest that turns on bus mastering at once.
fn small(lab: &Lab, width: Width) -> Result<CommandLine<'_>> {
    let line = match width {
        Width::Byte | Width::Word | Width::Long => line(lab),
        // QEMU knows GPUs of NVIDIA by their vendor.
        Width::Mirror => line_with(lab, 1, ",x-pci-vendor-id=0x10de"),
    };
    Ok(line.args(bus_master::firmware(width)?))
}

/// Starts a guest whose memory takes long to fault in, and waits until it waits for that.
pub(super) fn waiting(lab: &Lab, line: CommandLine) -> Result<Vm> {
    let mut vm = Vm::start(lab, &line.fault(Fault::Slow, 0..=0, ALWAYS))?;
    vm.qmp.run("cont", json!({}))?;
    ensure!(resumed(&mut vm, SOON)?, "the guest does not begin");
    wait_until_waiting(&mut vm)?;
    Ok(vm)
}

/// Whether the guest goes on within that time.
fn resumed(vm: &mut Vm, within: Duration) -> Result<bool> {
    Ok(vm.qmp.event_within("RESUME", within, |_| true)?.is_some())
}

fn wait_until_waiting(vm: &mut Vm) -> Result<()> {
    let stopped = vm.qmp.event_within("STOP", SOON, |_| true)?;
    ensure!(stopped.is_some(), "the guest did not have to wait: {}", vm.qmp.events_seen());
    let status = vm.qmp.status()?;
    ensure!(status == WAITING, "the guest was stopped, but its state is {status}");
    Ok(())
}

/// How far the device is, as the human monitor says it.
fn progress(vm: &mut Vm) -> Result<String> {
    let text = vm.qmp.human("info vfio-dma")?;
    let line = text.lines().find_map(|line| line.trim_end().strip_prefix("dut: "));
    Ok(line.with_context(|| format!("no line of the device: {text:?}"))?.to_owned())
}

/// What the machine monitor says of the device while the guest waits for `ram` bytes, if that is wrong.
fn wrong_query(vm: &mut Vm, ram: u64) -> Result<Option<String>> {
    // The job uses all threads when it has done what it was at when the guest began to wait.
    let all = wait_for("a job with all threads", SOON, || {
        let all = vm.qmp.run("x-query-vfio-dma", json!({}))?;
        Ok(Seen::of((all[0]["threads"] == 2).then(|| all.clone()), || all.to_string()))
    })?;
    let device = &all[0];
    let bytes = |name: &str| device[name].as_u64().unwrap_or(u64::MAX);
    let right = device["device-id"] == "dut"
        && (device["complete"] == false && device["waiting"] == true && device["failed"] == false)
        && (ram - 2 * MIB..ram + 64 * MIB).contains(&bytes("wanted"))
        && bytes("mapped") < bytes("wanted");
    Ok((!right || !all[1].is_null()).then(|| format!("the query returns {all}")))
}

/// Waits until the progress ends like that. An event can be sent before the monitor's greeting, and is lost then.
pub(super) fn progress_is(vm: &mut Vm, end: &str) -> Result<String> {
    wait_for("progress", SOON, || {
        let text = progress(vm)?;
        Ok(Seen::of(text.ends_with(end).then(|| text.clone()), || text))
    })
}

/// Waits until the memory is mapped, or cannot be; returns the event's data.
fn mapped(vm: &mut Vm) -> Result<Value> {
    let event = vm.qmp.event_within("VFIO_DMA_MAPPED", SOON, |_| true)?;
    let event = event.with_context(|| format!("no VFIO_DMA_MAPPED: {}", vm.qmp.events_seen()))?;
    Ok(event["data"].clone())
}

/// The number of the call that first turned on the device's bus mastering.
pub(super) fn first_start(calls: &[Call]) -> Option<usize> {
    calls.iter().position(exit_calls::starts)
}

fn pages(held: &MappingSet) -> Vec<Reach> {
    held.iter().map(|(at, mapping)| Reach::writable(*at, mapping.size)).collect()
}

/// What is wrong with what was mapped when the device was started.
pub(super) fn missing_at_start(lab: &Lab, calls: &[Call]) -> Result<Vec<String>> {
    let start = first_start(calls).context("the device was never started")?;
    missing(lab, &calls[..start])
}

/// What is wrong with what is mapped after these calls.
pub(super) fn missing(lab: &Lab, calls: &[Call]) -> Result<Vec<String>> {
    let held = witness::replay(calls)?;
    let held = held.into_values().next().unwrap_or_default();
    let guest = mappings::without(&firmware::flash(lab, calls), witness::guest_memory(calls));
    let mut problems = mappings::wrong_memory(&guest, &held);
    // No other device accesses these.
    let bar = |reach: &Reach| {
        BARS.contains(&reach.start) || reach.start >= 1 << 32 && reach.last - reach.start < 16 * MIB
    };
    let wanted = pages(&guest).into_iter().filter(|reach| !bar(reach)).collect();
    let held = pages(&held).into_iter().filter(|reach| !bar(reach)).collect();
    problems.extend(ranges::differences("wanted", wanted, "mapped", held));
    Ok(problems)
}

/// The guest waits, the monitor does not, and all is mapped before the device is started.
fn each_width(lab: &Lab, width: Width, check: Check) -> Result<()> {
    lab.report.step(&format!("{width:?}"));
    let mut vm = waiting(lab, small(lab, width)?)?;
    let text = progress(&mut vm)?;
    let mut problems = Vec::new();
    if !text.contains("gate closed, guest waits") {
        problems.push(format!("the monitor says `{text}`"));
    }
    if first_start(&vm.witnessed()?).is_some() || vm.first_output().is_some() {
        problems.push("the device was started, or the guest goes on".to_owned());
    }
    let ram = lab.job.l2_memory_mib << 20;
    problems.extend(wrong_query(&mut vm, ram)?);
    let mirrors = if let Width::Mirror = width { 2 } else { 0 };
    problems.extend(wrong_mirrors(&mut vm, (mirrors, 0))?);
    match vm.qmp.attempt("cont", json!({}))? {
        Err(refusal) if refusal.0.contains("still being mapped") => {}
        other => problems.push(format!("cont: {other:?}")),
    }
    // It takes seconds; a monitor that waited for it would be silent.
    let state = vm.qmp.status()?;
    if state != WAITING {
        problems.push(format!("it is {state} after a refused cont"));
    }

    faults::disarm()?;
    let event = mapped(&mut vm)?;
    vm.wait_first_output()?;
    problems.extend(missing_at_start(lab, &vm.witnessed()?)?);
    let bytes = event["mapped"].as_u64().unwrap_or(0);
    if !event["error"].is_null() || !(ram - 2 * MIB..ram + 64 * MIB).contains(&bytes) {
        problems.push(format!("the event says {event}"));
    }
    // The guest accesses them directly again.
    problems.extend(wrong_mirrors(&mut vm, (0, mirrors))?);
    let state = vm.qmp.status()?;
    if state != "running" || !progress(&mut vm)?.ends_with("gate open") {
        problems.push(format!("{state}, {}", progress(&mut vm)?));
    }
    lab.report.check(check, &problems, &format!("{text}; then {bytes} bytes mapped"));
    vm.quit().map(drop)
}

/// A complaint unless so many mirrors of the configuration space are intercepted, and so many are not any more.
fn wrong_mirrors(vm: &mut Vm, wanted: (usize, usize)) -> Result<Option<String>> {
    let tree = vm.qmp.human("info mtree -D")?;
    let mirrors: Vec<&str> = tree.lines().filter(|line| line.contains("vfio-dma-gate-mirror")).collect();
    let disabled = mirrors.iter().filter(|line| line.contains("[disabled]")).count();
    // The tree can show a region once for each address space.
    let once = |count: usize| count.min(2);
    let found = (once(mirrors.len() - disabled), once(disabled));
    Ok((found != wanted).then(|| format!("mirrors intercepted, and not any more: {found:?}, not {wanted:?}")))
}

/// A Linux that moves data.
fn linux(lab: &Lab) -> Result<()> {
    lab.report.step("Linux");
    let data = L2Job::Disk(lab.disk_job(lab.job.l2_memory_mib * 3 / 4));
    let mut vm = Vm::start(lab, &line(lab).linux(&data, ""))?;
    vm.qmp.run("cont", json!({}))?;
    let mut read = 0;
    vm.wait_ready(|event| read += read_bytes(event))?;
    lab.report.expect(Check::Data, read > 0, &format!("{read} bytes read and right"));
    let problems = missing_at_start(lab, &vm.witnessed()?)?;
    lab.report.check(Check::MappedAtBusMaster, &problems, "all is mapped when the device is started");
    mappings::mappings_without_bars(lab, &mut vm, Check::MappingsAfterBoot)?;
    mappings::no_threads(lab, &vm, Check::NoThreadsAfterBoot)?;
    vm.qmp.run("system_reset", json!({}))?;
    vm.wait_ready(|_| ())?;
    mappings::mappings_without_bars(lab, &mut vm, Check::MappingsAfterReset)?;
    vm.quit().map(drop)
}

pub(super) fn read_bytes(event: &Event) -> u64 {
    match event {
        Event::Moved { what, bytes, .. } if what == "read" => *bytes,
        _ => 0,
    }
}

/// A reset takes the write back: the guest runs again at once, and waits again when it has written again.
fn reset(lab: &Lab) -> Result<()> {
    lab.report.step("reset while it waits");
    let mut vm = waiting(lab, small(lab, Width::Word)?)?;
    vm.qmp.run("system_reset", json!({}))?;
    let resumed = resumed(&mut vm, SOON)?;
    wait_until_waiting(&mut vm)?;
    let (held, dropped) = (qemu_trace::count(HELD)?, qemu_trace::count("vfio_dma_gate_drop")?);
    let started = first_start(&vm.witnessed()?).is_some();
    faults::disarm()?;
    vm.wait_first_output()?;
    let mut problems = missing_at_start(lab, &vm.witnessed()?)?;
    if !resumed || (held, dropped) != (2, 1) || started {
        problems.push(format!(
            "runs again: {resumed}, held {held} times, dropped {dropped}, started before: {started}"
        ));
    }
    lab.report.check(Check::ResetWhileWaiting, &problems, "held, dropped, held again, made");
    vm.quit().map(drop)
}

/// A guest that was stopped while it waits does not go on by itself, but has its device.
fn stop(lab: &Lab) -> Result<()> {
    lab.report.step("stop while it waits");
    let mut vm = waiting(lab, small(lab, Width::Word)?)?;
    vm.qmp.run("stop", json!({}))?;
    faults::disarm()?;
    mapped(&mut vm)?;
    let resumed = resumed(&mut vm, Duration::from_secs(2))?;
    let state = vm.qmp.status()?;
    let started = first_start(&vm.witnessed()?).is_some();
    let right = !resumed && state == "paused" && started && vm.first_output().is_none();
    let seen = format!("{state}, runs again: {resumed}, bus mastering is on: {started}");
    lab.report.expect(Check::StopWhileWaiting, right, &seen);
    vm.qmp.run("cont", json!({}))?;
    vm.wait_first_output()?;
    vm.quit()?;

    lab.report.step("cont after stop while it waits");
    let mut vm = waiting(lab, small(lab, Width::Word)?)?;
    vm.qmp.run("stop", json!({}))?;
    vm.qmp.run("cont", json!({}))?;
    // It waits again, and the monitor does not.
    let state = vm.qmp.status()?;
    let started = first_start(&vm.witnessed()?).is_some();
    faults::disarm()?;
    vm.wait_first_output()?;
    let mut problems = missing_at_start(lab, &vm.witnessed()?)?;
    if state != WAITING || started {
        problems.push(format!("it is {state} after cont, started before: {started}"));
    }
    lab.report.check(Check::ContAfterStop, &problems, "all is mapped when the device is started");
    vm.quit().map(drop)
}

fn quit(lab: &Lab) -> Result<()> {
    lab.report.step("quit while it waits");
    let pinned = exit::pinned_pages()?;
    let calls = waiting(lab, small(lab, Width::Word)?)?.quit()?;
    let mut problems: Vec<String> = exit::still_pinned(pinned)?.into_iter().collect();
    if first_start(&calls).is_some() {
        problems.push("the device was started".to_owned());
    }
    if let Some((space, left)) = witness::replay(&calls)?.first_key_value() {
        problems.push(format!("QEMU left {} mappings in {space:?}", left.len()));
    }
    lab.report.check(Check::QuitWhileWaiting, &problems, "nothing is mapped or pinned");
    Ok(())
}

fn kill(lab: &Lab) -> Result<()> {
    lab.report.step("kill while it fills");
    let pinned = exit::pinned_pages()?;
    let vm = waiting(lab, small(lab, Width::Word)?)?;
    vm.kill()?;
    let problems: Vec<String> = exit::still_pinned(pinned)?.into_iter().collect();
    lab.report.check(Check::KilledWhileFilling, &problems, "nothing is pinned");
    Ok(())
}

/// Memory that cannot be mapped stops the guest when it starts the device, and the device is not started.
fn fail(lab: &Lab) -> Result<()> {
    lab.report.step("failure");
    let line = small(lab, Width::Word)?.fault(Fault::Full, RAM, ALWAYS);
    let mut vm = Vm::start(lab, &line)?;
    progress_is(&mut vm, "failed, gate closed")?;
    // The write starts another attempt, which fails as well.
    vm.qmp.run("cont", json!({}))?;
    let event = mapped(&mut vm)?;
    let stopped = vm.qmp.event_within("STOP", SOON, |_| true)?.is_some();
    // It can wait for the second attempt, if the event was that of the first one.
    let state = wait_for("the second attempt to fail", SOON, || {
        let state = vm.qmp.status()?;
        let ended = state != WAITING && state != "running";
        Ok(Seen::of(ended.then(|| state.clone()), || state))
    })?;
    let started = first_start(&vm.witnessed()?).is_some();
    let told = event["error"].as_str().is_some_and(|error| error.contains("Cannot allocate memory"));
    let right = stopped && state == "internal-error" && !started && told;
    let seen = format!("{state}, bus mastering is on: {started}; {event}");
    lab.report.expect(Check::FailureStopsGuest, right, &seen);
    vm.quit().map(drop)
}

/// Memory that the job has not come to when it is unplugged is never mapped.
fn unplug(lab: &Lab) -> Result<()> {
    lab.report.step("unplug while it fills");
    // Nothing in the guest turns on the bus mastering of the second device.
    let line = line_with(lab, 1, "").linux(&L2Job::Idle, "memhp_default_state=online_movable");
    let mut vm = Vm::start(lab, &line.fault(Fault::Slow, 0..=0, ALWAYS))?;
    vm.qmp.run("cont", json!({}))?;
    vm.wait_ready(|_| ())?;
    hotplug::plug(lab, &mut vm, 1, hotplug::DIMM_MIB, None)?;
    let address = hotplug::address(&mut vm)?;
    // Of its first memory, the kernel keeps some for itself.
    hotplug::guest_has(&mut vm, lab.job.l2_memory_mib)?;
    requests::unplug(lab, &mut vm, "dimm1")?;
    vm.qmp.run("object-del", json!({ "id": "mem1" }))?;
    let text = progress(&mut vm)?;
    faults::disarm()?;
    progress_is(&mut vm, "gate open")?;
    let calls = vm.witnessed()?;
    let mut problems = missing(lab, &calls)?;
    if !text.contains("gate closed") {
        problems.push(format!("too late: {text}"));
    }
    let there = |call: &&Call| call.is_map() && (address..address + hotplug::DIMM).contains(&call.iova);
    problems.extend(calls.iter().filter(there).map(|call| format!("mapped: {:#x}", call.iova)));
    lab.report.check(Check::UnpluggedWhileFilling, &problems, &text);
    vm.quit().map(drop)
}

/// A guest that never runs has all its memory mapped after a while.
fn never_started(lab: &Lab) -> Result<()> {
    lab.report.step("never started");
    let mut vm = Vm::start(lab, &small(lab, Width::Word)?)?;
    let text = progress_is(&mut vm, "gate open")?;
    lab.report.expect(Check::NeverStarted, vm.first_output().is_none(), &text);
    mappings::mappings_without_bars(lab, &mut vm, Check::MappingsOfPaused)?;
    vm.quit().map(drop)
}
