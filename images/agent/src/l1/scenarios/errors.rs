//! Too little lockable memory: QEMU refuses a device that cannot be realized, and nothing stays
//! mapped. Without the library, QEMU aborts when memory cannot be mapped at run time. With it, QEMU refuses the memory
//! device.

use std::os::unix::process::ExitStatusExt;

use anyhow::Result;
use serde_json::{Value, json};
use vfio_fast_protocol::job::{Container, Mode};
use vfio_fast_protocol::record::Record;
use vfio_fast_protocol::scenarios::errors::Check;

use crate::l1::checks::{count, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::{devices, limits, proc, text_pattern};

const MIB: u64 = 1 << 20;
/// Allowed at first: far less than the guest has.
const SMALL: u64 = 64 * MIB;
/// The memory device that is one too many.
const DIMM: u64 = 256 * MIB;
/// Entries that a type1 container may have: more than sections of memory, fewer than blocks of virtio-mem.
const ENTRIES: u64 = 64;

const SIGABRT: i32 = 6;

pub fn run(lab: &Lab) -> Result<()> {
    let memory = lab.job.l2_memory_mib * MIB;
    limits::give_up_lock_right()?;
    limits::set_memlock(None, SMALL)?;
    if lab.job.mode == Mode::Fast && lab.job.container == Container::Type1 {
        limits::allow_entries(ENTRIES)?;
    }
    let line = CommandLine::new(lab).q35("", ",slots=2,maxmem=8G").root_port(0).root_port(1);
    let mut vm = Vm::start(lab, &line)?;

    lab.report.step("refused device");
    let refusal = vm.qmp.attempt("device_add", device(lab))?;
    let text = refusal.err().map(|refusal| refusal.0).unwrap_or_default();
    lab.report.check(Check::RealizeError, &judge_realize(lab, &text, memory), &text);
    let status = vm.qmp.status()?;
    let alive = status == "prelaunch";
    lab.report.expect(Check::AliveAfterRefusal, alive, &format!("the VM is {status}"));
    mappings::nothing_mapped(lab, &vm, Check::NothingMappedAfterRefusal)?;
    mappings::no_threads(lab, &vm, Check::NoThreadsAfterRefusal)?;
    let locked = count::locked_bytes(lab, &vm)?;
    lab.report.expect(Check::NothingLockedAfterRefusal, locked == 0, &format!("{locked} bytes stay locked"));

    lab.report.step("second try");
    limits::set_memlock(Some(vm.pid), memory + SMALL)?;
    vm.qmp.run("device_add", device(lab))?;
    let wanted = mappings::mappings(lab, &mut vm, Check::MappingsAfterSecondTry)?;
    if lab.job.container == Container::Type1 {
        // Whoever made the calls, on whatever threads: the process has locked what is mapped.
        let locked = proc::locked_bytes(vm.pid)?;
        let mapped: u64 = wanted.values().map(|slot| slot.size).sum();
        let seen = format!("{locked} bytes are locked, {mapped} mapped");
        lab.report.expect(Check::LockedAsMapped, locked == mapped, &seen);
    }
    // No comparison here: of a map that failed the IOMMU core has counted the part that worked.
    lab.report.send(&Record::Facts(count::facts(&vm, &wanted)?));

    lab.report.step("memory at run time");
    // While QEMU dumps its processors it lets go of its lock, and sometimes fails a second time in
    // another thread. What it does until then is always the same.
    vm.log_witness()?;
    let backend = json!({ "qom-type": "memory-backend-ram", "id": "mem1", "size": DIMM });
    vm.qmp.run("object-add", backend)?;
    let dimm = json!({ "driver": "pc-dimm", "id": "dimm1", "memdev": "mem1" });
    if lab.job.mode == Mode::Fast {
        refused_plugs(lab, &mut vm, dimm, memory + SMALL)?;
        return vm.quit().map(drop);
    }
    let mut problems = Vec::new();
    // QEMU ends before it can reply.
    if let Ok(reply) = vm.qmp.attempt("device_add", dimm) {
        problems.push(format!("QEMU goes on and replies {reply:?}"));
    }
    let status = vm.wait_exit()?;
    if status.signal() != Some(SIGABRT) {
        problems.push(format!("QEMU ended with {status} instead of an abort"));
    }
    let errors = vm.stderr()?;
    problems.extend(judge_abort(lab, &errors));
    lab.report.check(Check::RuntimeError, &problems, "QEMU reported the map and aborted");
    Ok(())
}

/// Memory devices that cannot be mapped are refused, and the VM lives. One can be added when the limit is raised.
fn refused_plugs(lab: &Lab, vm: &mut Vm, dimm: Value, allowed: u64) -> Result<()> {
    let backend = json!({ "qom-type": "memory-backend-ram", "id": "mem2", "size": DIMM });
    vm.qmp.run("object-add", backend)?;
    let virtio_mem = |block: u64| {
        json!({
            "driver": "virtio-mem-pci", "id": "vmem", "memdev": "mem2", "bus": "rp1", "block-size": block,
            "requested-size": DIMM,
        })
    };
    let before = vm.witnessed()?.len();
    for (device, check) in [(&dimm, Check::DimmRefused), (&virtio_mem(DIMM / 2), Check::VirtioMemRefused)] {
        let text = refused_plug(vm, device)?;
        lab.report.check(check, &judge_plug(lab, &text, allowed), &text);
    }
    if lab.job.container == Container::Type1 {
        limits::set_memlock(Some(vm.pid), allowed + DIMM)?;
        let text = refused_plug(vm, &virtio_mem(2 * MIB))?;
        let explained = text.contains("-28 (No space left on device)") && text.contains("dma_entry_limit");
        lab.report.expect(Check::BlocksRefused, explained, &text);
    }
    let status = vm.qmp.status()?;
    let calls = vm.witnessed()?.split_off(before);
    let calls = calls.iter().filter(|call| call.mapped() || call.unmapped()).count();
    let seen = format!("the VM is {status}, after {calls} map and unmap calls");
    let alive = status == "prelaunch" && calls == 0;
    lab.report.expect(Check::AliveAfterRefusedPlug, alive, &seen);

    limits::set_memlock(Some(vm.pid), allowed + DIMM)?;
    vm.qmp.run("device_add", dimm)?;
    let calls = vm.witnessed()?.split_off(before);
    let mapped: u64 = calls.iter().filter(|call| call.mapped()).map(|call| call.size).sum();
    let seen = format!("{mapped} bytes were mapped in {} calls", calls.len());
    lab.report.expect(Check::PluggedAfterRaise, mapped == DIMM, &seen);
    Ok(())
}

/// The error of a memory device that cannot be plugged.
fn refused_plug(vm: &mut Vm, device: &Value) -> Result<String> {
    let reply = vm.qmp.attempt("device_add", device.clone())?;
    Ok(reply.err().map_or_else(|| "the device was added".to_owned(), |refusal| refusal.0))
}

/// Checks the error of a memory device that is refused before it is plugged.
fn judge_plug(lab: &Lab, text: &str, allowed: u64) -> Vec<String> {
    let pattern = "libvfio_fast cannot map 0x10000000 bytes of memory at %p for VFIO devices: -12 (Cannot allocate memory)";
    match text_pattern::strip(pattern, text) {
        Some(rest) => judge_explanation(lab, rest, text, |needed| needed >= DIMM, allowed),
        None => vec![format!("`{text}` is not `{pattern}`")],
    }
}

fn device(lab: &Lab) -> Value {
    let mut device = devices::to_add(lab, 0, lab.job.mode);
    device["id"] = "dut".into();
    device["bus"] = "rp0".into();
    device
}

/// Checks the text of the refusal. With the library its explanation follows, which names the bytes
/// that are needed and those that are allowed.
fn judge_realize(lab: &Lab, text: &str, memory: u64) -> Vec<String> {
    let group = match lab.job.container {
        Container::Type1 => "failed to setup container for group %d: ",
        Container::Iommufd => "",
    };
    let pattern = format!(
        "vfio {}: {group}memory listener initialization failed: \
         Region pc.ram: {}-12 (Cannot allocate memory)",
        lab.job.devices[0],
        devices::map_failure(lab.job.mode, "%p")
    );
    let Some(rest) = text_pattern::strip(&pattern, text) else {
        return vec![format!("`{text}` is not `{pattern}`")];
    };
    judge_explanation(lab, rest, text, |needed| needed >= memory, SMALL)
}

/// What stands on QEMU's standard error when it aborts.
fn judge_abort(lab: &Lab, errors: &str) -> Vec<String> {
    let failure = devices::map_failure(lab.job.mode, "0x10000000");
    let pattern = format!("{failure}-12 (Cannot allocate memory)");
    let mut problems = Vec::new();
    match errors.lines().find_map(|line| text_pattern::strip(&pattern, line).map(|rest| (line, rest))) {
        None => problems.push(format!("no line of standard error is `{pattern}`")),
        Some((line, rest)) => {
            let allowed = lab.job.l2_memory_mib * MIB + SMALL;
            problems.extend(judge_explanation(lab, rest, line, |needed| needed >= DIMM, allowed));
        }
    }
    let last = "qemu: hardware error: vfio: DMA mapping failed, unable to continue";
    if !errors.lines().any(|line| line == last) {
        problems.push(format!("no line of standard error is `{last}`"));
    }
    problems
}

fn judge_explanation(
    lab: &Lab,
    rest: &str,
    text: &str,
    needed: impl Fn(u64) -> bool,
    allowed: u64,
) -> Vec<String> {
    if lab.job.mode != Mode::Fast {
        return if rest.is_empty() { vec![] } else { vec![format!("`{text}` goes on with `{rest}`")] };
    }
    let numbers = text_pattern::numbers(rest);
    let mut problems = Vec::new();
    if !rest.starts_with(": ") || !rest.contains("RLIMIT_MEMLOCK") {
        problems.push(format!("`{text}` does not explain itself"));
    }
    // iommufd counts per user: the text has what this process has pinned, and what others have.
    if lab.job.container == Container::Iommufd && !rest.contains("other processes of user 0") {
        problems.push(format!("`{text}` does not say who is counted"));
    }
    if !numbers.iter().any(|n| needed(*n)) || !numbers.contains(&allowed) {
        problems.push(format!("`{text}` does not name the needed and the {allowed} allowed bytes"));
    }
    problems
}
