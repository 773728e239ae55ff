//! A BAR where the IOMMU cannot address it: one warning, and the VM goes on. The firmware alone
//! runs here, and nothing is unplugged, so this scenario also checks permissions.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vfio_fast_protocol::flatview::Row;
use vfio_fast_protocol::job::Mode;
use vfio_fast_protocol::ranges::{self, Reach};
use vfio_fast_protocol::record::Record;
use vfio_fast_protocol::scenarios::p2p_range::Check;
use vfio_fast_protocol::witness;

use crate::l1::checks::{count, mappings, p2p_warning};
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::qemu_trace;
use crate::l1::vm::Vm;

/// The first address the IOMMU of this scenario cannot have.
const BEYOND: u64 = 1 << 39;
const RESETS: usize = 3;
/// How the map of the BAR ends, and what QEMU suggests.
const INVALID: &str = "-22 (Invalid argument)";
const WIDTH: &str =
    "-cpu ...,host-phys-bits-limit=39 keeps the guest within the addresses that the IOMMU can translate";
/// Trace events of the memory listener.
const TRACED: [&str; 2] = ["vfio_listener_region_add_ram", "vfio_listener_region_del"];

pub fn run(lab: &Lab) -> Result<()> {
    let line = CommandLine::new(lab)
        .trace(&TRACED)
        .debug_console()
        .q35("", "")
        .root_port(0)
        .device_behind(0, "dut", 0);
    let mut vm = Vm::start(lab, &line)?;
    lab.report.step("firmware");
    vm.qmp.run("cont", json!({}))?;
    let first = firmware(&mut vm, 0, 1)?;
    report_sections(lab)?;
    let (rows, held) = mappings::flat_view_rows(lab, &mut vm, "memory", &Check::FlatViewAfterFirmware)?;
    let (beyond, within): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.start >= BEYOND);
    let wanted: Vec<Reach> = within.iter().filter_map(|row| row.reach()).collect();
    let read_only = wanted.iter().filter(|reach| !reach.write).count();
    let mut problems = ranges::differences("printed", wanted, "mapped", held);
    let calls = vm.witnessed()?;
    let slots = witness::guest_memory(&calls);
    for held in witness::replay(&calls)?.values() {
        problems.extend(mappings::wrong_memory(&slots, held));
    }
    if read_only == 0 {
        problems.push("no row is read-only: the firmware was not through".into());
    }
    if !beyond.iter().any(|row| row.is_device() && row.reach().is_some()) {
        problems.push("no BAR lies beyond the IOMMU's reach".into());
    }
    let seen = format!("{} rows are mapped, {read_only} read-only, the BAR is not", within.len());
    lab.report.check(Check::FlatViewAfterFirmware, &problems, &seen);
    mappings::no_threads(lab, &vm, Check::NoThreadsAfterFirmware)?;

    let status = vm.qmp.status()?;
    lab.report.expect(Check::Alive, status == "running", &status);

    let facts = count::facts(&vm, &slots.into_iter().filter(|(at, _)| *at < BEYOND).collect())?;
    count::witnesses_agree(lab, &vm, &facts, Check::WitnessesAgree)?;
    lab.report.send(&Record::Facts(facts));

    lab.report.step("resets");
    let mut problems = Vec::new();
    for n in 1..=RESETS {
        let before = vm.witnessed()?.len();
        vm.qmp.run("system_reset", json!({}))?;
        let again = firmware(&mut vm, before, 1 + n)?;
        let different = ranges::differences("first", first.clone(), "after the reset", again);
        problems.extend(different.into_iter().map(|text| format!("reset {n}: {text}")));
    }
    let seen = format!("{RESETS} resets, the same mappings after each");
    lab.report.check(Check::SameAfterResets, &problems, &seen);
    // The library's user is told how to keep the guest within the 39 bits of this IOMMU.
    let error = match lab.job.mode {
        Mode::Fast => format!("{INVALID}; {WIDTH}"),
        _ => INVALID.to_owned(),
    };
    p2p_warning::one_warning(lab, &vm.stderr()?, 0, &error, Check::OneWarning);
    vm.quit().map(drop)
}

/// The check `sections-traced`: the listener tells of each section as ever. The host compares them between modes, the host's
/// addresses left out.
fn report_sections(lab: &Lab) -> Result<()> {
    let text = qemu_trace::text()?;
    let mut counts = [0, 0];
    for line in text.lines().filter_map(|line| line.split_once("vfio_listener_region_").map(|(_, line)| line))
    {
        let section = line.split(" [0x").next().unwrap_or(line);
        counts[usize::from(section.starts_with("del"))] += 1;
        lab.report.log("held-sections", section);
    }
    let [added, removed] = counts;
    let problems = if added > removed && removed > 0 { vec![] } else { vec![text] };
    lab.report.check(Check::SectionsTraced, &problems, &format!("{added} sections added, {removed} removed"));
    Ok(())
}

/// Waits until the firmware is through for the `times`th time, counting from the call numbered `from`; what is mapped then.
fn firmware(vm: &mut Vm, from: usize, times: usize) -> Result<Vec<Reach>> {
    vm.wait_firmware(times)?;
    let calls = vm.witnessed()?;
    // The BAR is placed, since `from`, and PAM is as the firmware leaves it: the last thing it
    // does is to lock its shadow.
    let slots = witness::guest_memory(&calls);
    let placed = calls[from..].iter().any(|c| c.gives_memory() && c.iova >= BEYOND && c.size > 0);
    ensure!(
        placed && slots.range(BEYOND..).next().is_some(),
        "the firmware did not place the BAR beyond the IOMMU's reach"
    );
    ensure!(slots.contains_key(&0xf0000), "the firmware did not lock its shadow");
    let containers = witness::replay(&calls)?;
    let held = containers.values().next().context("nothing is mapped")?;
    Ok(ranges::normalise(witness::reach(held)?))
}
