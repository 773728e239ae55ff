//! What QEMU does when something cannot be unmapped. The witness gives it false answers in place of the kernel.
//!
//! If an unmap is refused, QEMU says so once, goes on, keeps the memory, and tries again at its next commit. If the kernel
//! unmaps fewer bytes than are known to be mapped, nobody knows what is mapped: QEMU turns off bus mastering and stops.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::record::Event;
use vfio_fast_protocol::scenarios::failed_unmaps::Check;
use vfio_fast_protocol::witness::{self, Call};

use crate::l1::checks::{exit, exit_calls, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::faults::{self, EVERYWHERE, Fault};
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::{proc, qemu_trace, requests};
use crate::wait::{Seen, wait_for};

const MIB: u64 = 1 << 20;
/// The memory of the virtio-mem device, what of it is plugged at first, and what is mapped at once.
const BLOCKS: u64 = 256 * MIB;
const PLUGGED: u64 = 64 * MIB;
const BLOCK: u64 = 2 * MIB;
const DIMM: u64 = 256 * MIB;
/// Larger than any BAR or page of L2's, and smaller than a block.
const SMALL: u64 = MIB;

/// The library makes a call once, and once more to undo what failed.
const TWICE: u64 = 2;
const ALWAYS: u64 = u64::MAX;

const EBUSY: i32 = 16;
const SIGABRT: i32 = 6;
const REFUSED: &str = "libvfio_fast failed to unmap IOVA";

/// Far longer than an RCU grace period.
const FREED_WITHIN: Duration = Duration::from_secs(60);
/// How often the guest is asked to release a DIMM, and how long it gets.
const REQUESTS: u32 = 10;
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How long QEMU waits for a device with pending transactions.
const PENDING: Duration = Duration::from_secs(1);

pub fn run(lab: &Lab) -> Result<()> {
    exits(lab)?;
    refused_and_tried_again(lab)?;
    lab.report.step("unknown after a block");
    stopped(lab, Check::StoppedByBlock, 2, &devices(lab), |vm| {
        faults::arm(Fault::Short, blocks(vm)?, BLOCK, 1)?;
        vm.qmp.run("qom-set", blocks_of(0)).map(drop)
    })?;
    lab.report.step("unknown after a DIMM");
    stopped(lab, Check::StoppedByDimm, 2, &devices(lab), |vm| {
        plug(vm, 1)?;
        vm.wait_event("the DIMM's memory", |event| matches!(event, Event::Memory { .. }))?;
        faults::arm(Fault::Short, dimm(vm)?, u64::MAX, 1)?;
        // The guest can miss a request. QEMU replies as long as it runs.
        for _ in 0..REQUESTS {
            if vm.qmp.attempt("device_del", json!({ "id": "dimm1" })).is_err() {
                break;
            }
            std::thread::sleep(AGAIN_AFTER);
        }
        Ok(())
    })?;
    behind_a_viommu(lab)
}

/// Two devices in one container, virtio-mem, and room for DIMMs. No vIOMMU.
fn devices(lab: &Lab) -> CommandLine<'_> {
    CommandLine::new(lab)
        .q35("", ",slots=4,maxmem=8G")
        .args(["-object", &format!("memory-backend-ram,id=blocks,size={BLOCKS},reserve=off")])
        .args([
            "-device",
            &format!("virtio-mem-pci,id=vmem,memdev=blocks,block-size={BLOCK},requested-size={PLUGGED}"),
        ])
        .device(0, "dut")
        .root_port(0)
        .device_behind(1, "dut1", 0)
        .faults()
        // Memory that is unplugged later must hold nothing that cannot move.
        .linux(&L2Job::Idle, "memhp_default_state=online_movable")
}

fn started(lab: &Lab, line: &CommandLine) -> Result<Vm> {
    let mut vm = Vm::start(lab, line)?;
    vm.qmp.run("cont", json!({}))?;
    vm.wait_ready(|_| ())?;
    Ok(vm)
}

/// Refused unmaps of a block, of a DIMM and of a device, all in one machine, and an exit that leaves nothing.
fn refused_and_tried_again(lab: &Lab) -> Result<()> {
    let pinned = exit::pinned_pages()?;
    lab.report.step("boot");
    let mut vm = started(lab, &devices(lab))?;
    plugged(&mut vm, PLUGGED, lab.wait())?;

    lab.report.step("block");
    let before = Before::of(&vm)?;
    let range = blocks(&mut vm)?;
    faults::arm(Fault::Busy, range.clone(), BLOCK, TWICE)?;
    vm.qmp.run("qom-set", blocks_of(0))?;
    plugged(&mut vm, 0, lab.wait())?;
    before.tried_again(lab, &mut vm, Check::BlockUnmappedLater, &range)?;

    lab.report.step("DIMM");
    plug(&mut vm, 1)?;
    vm.wait_event("the DIMM's memory", |event| matches!(event, Event::Memory { .. }))?;
    let range = dimm(&mut vm)?;
    let slots = witness::guest_memory(&vm.witnessed()?);
    let host = slots.get(range.start()).context("KVM has no memory where the DIMM is")?.vaddr;
    let before = Before::of(&vm)?;
    faults::arm(Fault::Busy, range.clone(), u64::MAX, ALWAYS)?;
    requests::unplug(lab, &mut vm, "dimm1")?;
    vm.qmp.run("object-del", json!({ "id": "mem1" }))?;
    let (mut problems, refused) = before.problems(&mut vm)?;
    let left = held(&vm, &range)?;
    if left == 0 || !proc::has_mapped(vm.pid, host)? {
        problems.push(format!("{left} bytes are mapped for the devices, and QEMU has freed the memory"));
    }
    lab.report.check(Check::DimmKept, &problems, &format!("{refused} refusals, {left} bytes are kept"));

    faults::disarm()?;
    // Any commit tries again.
    plug(&mut vm, 2)?;
    let freed = wait_for("the DIMM's memory to be gone", FREED_WITHIN, || {
        let mapped = proc::has_mapped(vm.pid, host)?;
        Ok(Seen::of((!mapped).then_some(()), || format!("{host:#x} is mapped")))
    });
    let old = witness::replay(&vm.witnessed()?)?;
    let old = old.values().flatten().filter(|(_, m)| (host..host + DIMM).contains(&m.vaddr)).count();
    let (mut problems, _) = before.problems(&mut vm)?;
    problems.extend(freed.err().map(|error| format!("{error:#}")));
    if old > 0 {
        problems.push(format!("{old} mappings of it are left"));
    }
    lab.report.check(Check::DimmUnmappedLater, &problems, "unmapped and freed");

    lab.report.step("device");
    let before = Before::of(&vm)?;
    faults::arm(Fault::Busy, EVERYWHERE, SMALL, TWICE)?;
    requests::unplug(lab, &mut vm, "dut1")?;
    before.tried_again(lab, &mut vm, Check::DeviceUnmappedLater, &EVERYWHERE)?;

    lab.report.step("exit");
    faults::disarm()?;
    exit::quit(lab, vm, pinned, Check::ExitAfterRefusals)
}

/// A vIOMMU unmaps pages, for one device.
fn behind_a_viommu(lab: &Lab) -> Result<()> {
    let job = &lab.job;
    let data = lab.disk_job(job.l2_memory_mib / 2);
    let line = CommandLine::new(lab)
        .q35(",kernel-irqchip=split", "")
        .args(["-device", "intel-iommu,intremap=on,caching-mode=on"])
        .device(0, "dut")
        .faults()
        .linux(&L2Job::Read(data), "intel_iommu=on iommu=nopt iommu.strict=1");
    lab.report.step("page");
    let mut vm = Vm::start(lab, &line)?;
    vm.qmp.run("cont", json!({}))?;
    vm.wait_event("L2 to begin to read", |event| matches!(event, Event::Up { .. }))?;
    let before = Before::of(&vm)?;
    faults::arm(Fault::Busy, EVERYWHERE, SMALL, TWICE)?;
    // It has compared what it read.
    vm.wait_ready(|_| ())?;
    before.tried_again(lab, &mut vm, Check::PageUnmappedLater, &(0..=0))?;

    lab.report.step("unknown after a page");
    faults::arm(Fault::Short, EVERYWHERE, u64::MAX, 1)?;
    stop_by(lab, vm, Check::StoppedByPage, 1, |vm| {
        // It can end before it replies.
        let _ = vm.qmp.attempt("system_reset", json!({}));
        Ok(())
    })
}

/// Starts a machine, and checks that it stops after what `cause` does.
fn stopped(
    lab: &Lab,
    check: Check,
    devices: usize,
    line: &CommandLine,
    cause: impl FnOnce(&mut Vm) -> Result<()>,
) -> Result<()> {
    let mut vm = started(lab, line)?;
    plugged(&mut vm, PLUGGED, lab.wait())?;
    stop_by(lab, vm, check, devices, cause)
}

/// Checks that QEMU turns off bus mastering and aborts after what `cause` does, and that it says why.
fn stop_by(
    lab: &Lab,
    mut vm: Vm,
    check: Check,
    devices: usize,
    cause: impl FnOnce(&mut Vm) -> Result<()>,
) -> Result<()> {
    let before = vm.witnessed()?.len();
    cause(&mut vm)?;
    let status = vm.wait_exit()?;
    vm.log_witness()?;
    faults::disarm()?;
    let calls = vm.witnessed()?.split_off(before);
    let mut problems = Vec::new();
    if status.signal() != Some(SIGABRT) {
        problems.push(format!("QEMU ended with {status} instead of an abort"));
    }
    // A reset may have turned it off and on before.
    let last = calls.iter().rposition(|call| call.is_map() || call.is_unmap()).unwrap_or(0);
    let end = &calls[last..];
    let quiet: BTreeSet<u32> =
        end.iter().filter(|call| exit_calls::quiets(call)).map(|call| call.fd).collect();
    if quiet.len() != devices {
        problems.push(format!("{} of {devices} devices are quiet", quiet.len()));
    }
    if end.iter().any(exit_calls::starts) {
        problems.push("a device was started after the last call".to_owned());
    }
    let errors = vm.stderr()?;
    for line in [
        "libvfio_fast does not know any more what is mapped: ",
        "qemu: hardware error: vfio: bus mastering is off in all devices of the container, unable to continue",
    ] {
        if !errors.lines().any(|said| said.contains(line)) {
            problems.push(format!("nothing on standard error is `{line}`"));
        }
    }
    lab.report.check(check, &problems, &format!("{} devices are quiet, and QEMU aborted", quiet.len()));
    Ok(())
}

/// QEMU's end with a device that is gone, with one that does not come to rest, and with `-run-with async-teardown=on`. No
/// guest runs.
fn exits(lab: &Lab) -> Result<()> {
    let line =
        || CommandLine::new(lab).q35("", "").device(0, "dut").faults().trace(&["vfio_dma_mapper_discard"]);

    lab.report.step("dead device");
    let (calls, errors, _) = quit_with(lab, &line(), Fault::Gone)?;
    judge_left(lab, Check::ExitOfADeadDevice, &calls, &errors, "it does not answer", false);

    lab.report.step("pending transactions");
    let (calls, errors, took) = quit_with(lab, &line(), Fault::Pending)?;
    let reason = "its transactions are still pending after a second";
    judge_left(lab, Check::ExitWithPendingTransactions, &calls, &errors, reason, took >= PENDING);

    lab.report.step("asynchronous teardown");
    let vm = Vm::start(lab, &line().args(["-run-with", "async-teardown=on"]))?;
    let before = vm.witnessed()?.len();
    let calls = vm.quit()?;
    let mut problems = exit_calls::taken_away(&calls, before, 1, u64::MAX)?;
    let discarded = qemu_trace::text()?.lines().filter(|line| line.contains("mapper_discard")).count();
    if discarded > 0 {
        problems.push(format!("{discarded} blocks of memory were discarded"));
    }
    lab.report.check(Check::ExitWithAsyncTeardown, &problems, "unmapped, and nothing was discarded");
    // Another process has QEMU's memory, and with its BARs the device.
    wait_for("the teardown to end", FREED_WITHIN, || {
        Ok(Seen::of((!proc::is_running("cleanup/")?).then_some(()), || "it runs".to_owned()))
    })?;
    Ok(())
}

/// Quits while the configuration space gives false answers; the calls after that, the errors, and how long it took.
fn quit_with(lab: &Lab, line: &CommandLine, fault: Fault) -> Result<(Vec<Call>, String, Duration)> {
    let mut vm = Vm::start(lab, line)?;
    let before = vm.witnessed()?.len();
    faults::arm(fault, EVERYWHERE, 0, ALWAYS)?;
    let start = vm.age();
    vm.qmp.run("quit", json!({}))?;
    let status = vm.wait_exit()?;
    let took = vm.age() - start;
    faults::disarm()?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok((vm.witnessed()?.split_off(before), vm.stderr()?, took))
}

/// Checks an exit that leaves unmapping to the kernel, because the device may still do DMA. `quieted` tells whether its
/// command register should have been written.
fn judge_left(lab: &Lab, check: Check, calls: &[Call], errors: &str, reason: &str, quieted: bool) {
    let mut problems = Vec::new();
    if !errors.lines().any(|line| line.contains("may still access memory") && line.contains(reason)) {
        problems.push(format!("standard error does not say that {reason}"));
    }
    let unmaps = calls.iter().filter(|call| call.is_unmap()).count();
    if unmaps > 0 {
        problems.push(format!("{unmaps} unmap calls"));
    }
    if calls.iter().any(exit_calls::quiets) != quieted || calls.iter().any(exit_calls::starts) {
        problems.push("the command register was written, or not written, or QEMU did not wait".to_owned());
    }
    lab.report.check(check, &problems, "left to the kernel");
}

/// How far the record and the errors were before something was refused.
struct Before {
    calls: usize,
    lines: usize,
}

impl Before {
    fn of(vm: &Vm) -> Result<Self> {
        Ok(Self { calls: vm.witnessed()?.len(), lines: reported(vm)?.len() })
    }

    /// What is wrong after refusals, except for what is mapped: the VM runs, and QEMU has said so in one line. Also the
    /// number of refusals.
    fn problems(&self, vm: &mut Vm) -> Result<(Vec<String>, usize)> {
        let status = vm.qmp.status()?;
        let mut problems = Vec::new();
        if status != "running" {
            problems.push(format!("the VM is {status}"));
        }
        let lines = reported(vm)?.split_off(self.lines);
        let [line] = &lines[..] else {
            problems.push(format!("{} lines instead of one: {lines:?}", lines.len()));
            return Ok((problems, 0));
        };
        if !line.contains("-16 (Device or resource busy)") {
            problems.push(format!("not the reason: {line}"));
        }
        let refused = self.refused(vm)?.len();
        if (refused as u64) < TWICE {
            problems.push(format!("{refused} unmaps were refused"));
        }
        Ok((problems, refused))
    }

    fn refused(&self, vm: &Vm) -> Result<Vec<Call>> {
        let calls = vm.witnessed()?.split_off(self.calls);
        Ok(calls.into_iter().filter(|call| call.is_unmap() && call.ret != 0 && call.errno == EBUSY).collect())
    }

    /// Checks that what was refused is unmapped by now, and that nothing is mapped in `range` any more, unless that is all
    /// addresses.
    fn tried_again(&self, lab: &Lab, vm: &mut Vm, check: Check, range: &RangeInclusive<u64>) -> Result<()> {
        let (mut problems, count) = self.problems(vm)?;
        for call in self.refused(vm)? {
            let calls = mappings::quietly(vm, |vm| vm.witnessed())?.split_off(self.calls);
            let inside = |other: &&Call| {
                other.unmapped()
                    && other.iova <= call.iova
                    && call.iova - other.iova < other.size
                    && other.out > 0
            };
            if !calls.iter().any(|other| inside(&other)) {
                problems.push(format!("{:#x} + {:#x} was refused and not tried again", call.iova, call.size));
            }
        }
        if *range != EVERYWHERE && held(vm, range)? > 0 {
            problems.push(format!("{} bytes are left", held(vm, range)?));
        }
        lab.report.check(check, &problems, &format!("{count} refusals, and all is unmapped"));
        Ok(())
    }
}

/// The lines about failed unmaps on standard error.
fn reported(vm: &Vm) -> Result<Vec<String>> {
    let errors = vm.stderr()?;
    Ok(errors.lines().filter(|line| line.contains(REFUSED)).map(str::to_owned).collect())
}

/// Bytes that are mapped in `range`, for any device.
fn held(vm: &Vm, range: &RangeInclusive<u64>) -> Result<u64> {
    let held = witness::replay(&vm.witnessed()?)?;
    Ok(held.values().flatten().filter(|(iova, _)| range.contains(*iova)).map(|(_, m)| m.size).sum())
}

fn plug(vm: &mut Vm, n: u64) -> Result<()> {
    let backend = format!("mem{n}");
    vm.qmp.run("object-add", json!({ "qom-type": "memory-backend-ram", "id": backend, "size": DIMM }))?;
    vm.qmp.run("device_add", json!({ "driver": "pc-dimm", "id": format!("dimm{n}"), "memdev": backend }))?;
    Ok(())
}

/// Where the devices of that type are: address and size.
fn memory_device(vm: &mut Vm, kind: &str) -> Result<(u64, u64)> {
    let devices = vm.qmp.run("query-memory-devices", json!({}))?;
    let found = devices.as_array().into_iter().flatten().find(|device| device["type"] == kind);
    let data =
        found.map(|device| device["data"].clone()).with_context(|| format!("no {kind} in {devices}"))?;
    let address = data["addr"].as_u64().or(data["memaddr"].as_u64()).context("it has no address")?;
    Ok((address, data["size"].as_u64().context("it has no size")?))
}

fn dimm(vm: &mut Vm) -> Result<RangeInclusive<u64>> {
    let (address, size) = memory_device(vm, "dimm")?;
    Ok(address..=address + size - 1)
}

fn blocks(vm: &mut Vm) -> Result<RangeInclusive<u64>> {
    let (address, _) = memory_device(vm, "virtio-mem")?;
    Ok(address..=address + BLOCKS - 1)
}

fn blocks_of(bytes: u64) -> serde_json::Value {
    json!({ "path": "/machine/peripheral/vmem", "property": "requested-size", "value": bytes })
}

/// Waits until the guest has so many bytes of blocks plugged.
fn plugged(vm: &mut Vm, bytes: u64, within: Duration) -> Result<()> {
    wait_for(&format!("{bytes} bytes of blocks to be plugged"), within, || {
        let (_, now) = memory_device(vm, "virtio-mem")?;
        Ok(Seen::of((now == bytes).then_some(()), || format!("{now} are plugged")))
    })
}
