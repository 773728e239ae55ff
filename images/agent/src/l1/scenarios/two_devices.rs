//! Two devices share a container: the second joins without a map, the first leaves without an
//! unmap, and with the last one everything is unmapped. Then a QEMU that becomes a daemon first, one that quits and one
//! that is killed.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vfio_fast_protocol::job::Mode;
use vfio_fast_protocol::record::Record;
use vfio_fast_protocol::scenarios::two_devices::Check;
use vfio_fast_protocol::witness::{self, Call};

use crate::l1::checks::{count, exit, mappings, timeline};
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::vm::Vm;
use crate::l1::{devices, requests};

pub fn run(lab: &Lab) -> Result<()> {
    together(lab)?;
    daemon(lab)
}

/// No guest runs here. A guest does not see function 1 of a slot without a function 0, so
/// QEMU plugs and unplugs it without asking one, as long as hotplug is the native one.
fn together(lab: &Lab) -> Result<()> {
    let line = CommandLine::new(lab)
        .args(["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"])
        .q35("", "")
        .root_port(0)
        .root_port(1)
        .timeline();
    let mut vm = Vm::start(lab, &line)?;
    lab.report.step("join");
    vm.qmp.run("device_add", device(lab, 0, lab.job.mode))?;
    mappings::mappings(lab, &mut vm, Check::MappingsFirstDevice)?;
    let before = vm.witnessed()?;
    if lab.job.mode == Mode::Fast {
        refuse(lab, &mut vm, Mode::Stock, Check::MixedRefusedThrough, ("builtin", "libvfio-fast"))?;
    }
    vm.qmp.run("device_add", device(lab, 1, lab.job.mode))?;
    mappings::mappings(lab, &mut vm, Check::MappingsBothDevices)?;
    let joined = changes(&vm.witnessed()?[before.len()..]);
    lab.report.expect(Check::SecondJoinsUntouched, joined == 0, &format!("{joined} maps and unmaps"));

    lab.report.step("leave");
    let before = vm.witnessed()?;
    leave(lab, &mut vm, 0)?;
    mappings::mappings(lab, &mut vm, Check::MappingsOneLeft)?;
    let left = changes(&vm.witnessed()?[before.len()..]);
    lab.report.expect(Check::FirstLeavesUntouched, left == 0, &format!("{left} maps and unmaps"));

    leave(lab, &mut vm, 1)?;
    mappings::nothing_mapped(lab, &vm, Check::NothingMappedAfterBothLeft)?;
    mappings::unmapped_before_leaving(lab, &vm, Check::UnmappedBeforeLeaving)?;

    lab.report.step("come back");
    vm.qmp.run("device_add", device(lab, 1, lab.job.mode))?;
    let wanted = mappings::mappings(lab, &mut vm, Check::MappingsComeBack)?;
    let facts = count::facts(&vm, &wanted)?;
    count::witnesses_agree(lab, &vm, &facts, Check::WitnessesAgree)?;
    lab.report.send(&Record::Facts(facts));
    mappings::no_threads(lab, &vm, Check::NoThreadsComeBack)?;
    if lab.job.mode == Mode::Fast {
        timeline::agrees(lab, &vm, Check::TimelineAgrees)?;
        // The other way round, in a container that the first device has mapped without the library.
        leave(lab, &mut vm, 1)?;
        vm.qmp.run("device_add", device(lab, 0, Mode::Stock))?;
        refuse(lab, &mut vm, Mode::Fast, Check::MixedRefusedWithout, ("libvfio-fast", "builtin"))?;
        leave(lab, &mut vm, 0)?;
        left_alone(lab, &mut vm)?;
    }
    vm.quit().map(drop)
}

/// A device with another DMA mapper than the container cannot join it: the check
/// `mixed-refused-<how>`.
fn refuse(
    lab: &Lab,
    vm: &mut Vm,
    wants: Mode,
    check: Check,
    (device_mapper, container_mapper): (&str, &str),
) -> Result<()> {
    let wanted = format!(
        "vfio {}: x-dma-mapper={device_mapper} conflicts with the container, which uses \
         x-dma-mapper={container_mapper}",
        lab.job.devices[1]
    );
    let reply = vm.qmp.attempt("device_add", device(lab, 1, wants))?;
    let text = reply.err().map(|refusal| refusal.0).unwrap_or_default();
    let seen = if text == wanted { text.clone() } else { format!("`{text}` is not `{wanted}`") };
    lab.report.expect(check, text == wanted, &seen);
    Ok(())
}

/// QEMU's own code maps a device without the property: the check `default-is-builtin`.
fn left_alone(lab: &Lab, vm: &mut Vm) -> Result<()> {
    let before = vm.witnessed()?.len();
    // Without the property, as for a QEMU that does not have it.
    vm.qmp.run("device_add", device(lab, 0, Mode::Reference))?;
    let property = |name| json!({ "path": "/machine/peripheral/dut0", "property": name });
    let mut problems = Vec::new();
    let mapper = vm.qmp.run("qom-get", property("x-dma-mapper"))?;
    if mapper != "builtin" {
        problems.push(format!("x-dma-mapper is {mapper}"));
    }
    let by_library = vm.qmp.run("x-query-vfio-dma", json!({}))?;
    if by_library != json!([]) {
        problems.push(format!("the library maps it: {by_library}"));
    }
    let calls = changes(&vm.witnessed()?[before..]);
    if calls == 0 {
        problems.push("nothing was mapped".to_owned());
    }
    lab.report.check(
        Check::DefaultIsBuiltin,
        &problems,
        &format!("{calls} maps and unmaps by QEMU's own code"),
    );
    Ok(())
}

fn device(lab: &Lab, n: usize, mode: Mode) -> Value {
    let mut device = devices::to_add(lab, n, mode);
    device["id"] = format!("dut{n}").into();
    device["bus"] = format!("rp{n}").into();
    device["addr"] = "0.1".into();
    device
}

fn leave(lab: &Lab, vm: &mut Vm, n: usize) -> Result<()> {
    requests::unplug(lab, vm, &format!("dut{n}"))
}

fn changes(calls: &[Call]) -> usize {
    calls.iter().filter(|call| call.is_map() || call.is_unmap()).count()
}

/// `-daemonize` forks before devices are realized: a thread made before would be lost.
fn daemon(lab: &Lab) -> Result<()> {
    lab.report.step("daemon");
    let line = CommandLine::new(lab).q35("", "").device(0, "dut");
    let pinned = exit::pinned_pages()?;
    let mut vm = Vm::start_daemon(lab, &line)?;
    mappings::mappings(lab, &mut vm, Check::MappingsDaemon)?;
    mappings::no_threads(lab, &vm, Check::NoThreadsDaemon)?;
    let calls = vm.witnessed()?;
    let mapped = witness::replay(&calls)?.into_values().next().context("the daemon mapped nothing")?.len();
    let strangers = calls.iter().filter(|c| c.is_map() && c.pid != u64::from(vm.pid)).count();
    lab.report.expect(
        Check::DaemonMapsItself,
        strangers == 0,
        &format!("{mapped} mappings, {strangers} maps by others"),
    );
    exit::quit(lab, vm, pinned, Check::Quit)?;

    lab.report.step("kill");
    exit::kill(lab, &line, Check::Killed, Check::MappingsAfterKill)
}
