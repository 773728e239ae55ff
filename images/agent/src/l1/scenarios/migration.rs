//! L2 is migrated from one QEMU to another while a device writes to its memory.
//!
//! The device is mtty, a mediated device that is a sample of the kernel's and can be migrated; a patch lets it write. A
//! container without other devices reports the pages that were written through `vfio_dma_rw()` as dirty, and no others.
//! KVM does not see these writes. So a page that VFIO does not report keeps the contents that it had when it was sent.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::record::Event;
use vfio_fast_protocol::scenarios::migration::Check;
use vfio_fast_protocol::witness::{Call, Dirty};

use crate::l1::checks::{exit, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::devices;
use crate::l1::lab::Lab;
use crate::l1::qemu_files::QemuFiles;
use crate::l1::vm::Vm;
use crate::wait::{Seen, wait_for};

/// The devices of both QEMUs.
const SOURCE: &str = "5c0e3a52-0000-4000-8000-000000000001";
const DESTINATION: &str = "5c0e3a52-0000-4000-8000-000000000002";
/// The kernel's sample does not let KVM handle its interrupts.
pub(super) const MIGRATABLE: &str = "enable-migration=on,x-no-kvm-intx=on";
pub(super) const SOCKET: &str = "unix:/run/migration";
/// How often QEMU looks for dirty pages before it may stop L2.
const ROUNDS: u64 = 6;
/// Bytes sent each second, and milliseconds that L2 may stand still: too little for what L2 writes to meanwhile, so
/// QEMU does not stop L2.
const SLOW: (u64, u64) = (32 << 20, 1);
/// Enough for that.
pub(super) const QUICK: (u64, u64) = (1 << 30, 10_000);

pub fn run(lab: &Lab) -> Result<()> {
    let pinned = exit::pinned_pages()?;
    let mut source = Vm::start(lab, &line(lab, QemuFiles::USUAL, SOURCE)?)?;
    mappings::mappings(lab, &mut source, Check::MappingsSource)?;
    source.qmp.run("cont", json!({}))?;
    let (pages, before) = source.next_event("the device to write", |event| match event {
        Event::Writing { pages, written, .. } => Some((*pages, *written)),
        _ => None,
    })?;

    lab.report.step("cancelled");
    limit(&mut source, SLOW)?;
    cancel(lab, &mut source)?;

    lab.report.step("migration");
    let incoming = line(lab, QemuFiles::DESTINATION, DESTINATION)?.args(["-incoming", SOCKET]);
    let mut destination = Vm::start(lab, &incoming)?;
    source.qmp.run("migrate", json!({ "uri": SOCKET }))?;
    let rounds = migrated(lab, &mut source, Some(ROUNDS))?;
    migrated(lab, &mut destination, None)?;
    lab.report.expect(Check::SentInRounds, rounds >= ROUNDS, &format!("{rounds} looks for dirty pages"));
    mappings::mappings(lab, &mut destination, Check::MappingsDestination)?;

    lab.report.step("destination");
    destination.qmp.run("cont", json!({}))?;
    tracked(lab, &source.witnessed()?, &destination.witnessed()?, pages);
    compared(lab, &mut destination, pages, before)?;
    exit::quit(lab, source, pinned, Check::QuitSource)?;
    exit::quit(lab, destination, pinned, Check::QuitDestination)
}

/// A QEMU with a device of its own; L2 is the same.
fn line<'a>(lab: &'a Lab, files: QemuFiles, uuid: &str) -> Result<CommandLine<'a>> {
    let folder = devices::make_mediated(uuid)?;
    let properties = lab.job.device_properties();
    Ok(CommandLine::with_files(lab, files)
        .q35("", "")
        .args(["-device", &format!("vfio-pci,id=dut,sysfsdev={folder},{MIGRATABLE}{properties}")])
        .linux(&L2Job::Migration { seed: lab.job.write_seed, times: 1 }, ""))
}

pub(super) fn limit(vm: &mut Vm, (bytes, ms): (u64, u64)) -> Result<()> {
    let limits = json!({ "max-bandwidth": bytes, "downtime-limit": ms });
    vm.qmp.run("migrate-set-parameters", limits).map(drop)
}

/// Begins a migration to nowhere, and cancels it once memory is being sent.
fn cancel(lab: &Lab, vm: &mut Vm) -> Result<()> {
    const NOWHERE: &str = "/run/cancelled";
    vm.qmp.run("migrate", json!({ "uri": format!("file:{NOWHERE}") }))?;
    wait_for("memory to be sent", lab.wait(), || {
        let state = vm.qmp.run("query-migrate", json!({}))?;
        let sent = state["ram"]["transferred"].as_u64().unwrap_or(0);
        Ok(Seen::of((sent > 1 << 20).then_some(()), || state.to_string()))
    })?;
    vm.qmp.run("migrate_cancel", json!({}))?;
    wait_for("the end of what was cancelled", lab.wait(), || {
        let state = vm.qmp.run("query-migrate", json!({}))?;
        Ok(Seen::of((state["status"] == "cancelled").then_some(()), || state.to_string()))
    })?;
    fs::remove_file(NOWHERE).context("there is nothing of the migration")
}

/// Waits for the end of a migration; returns how often QEMU looked for dirty pages. After `slow` times, the limits are
/// lifted.
pub(super) fn migrated(lab: &Lab, vm: &mut Vm, mut slow: Option<u64>) -> Result<u64> {
    wait_for("the end of the migration", lab.wait(), || {
        let state = vm.qmp.run("query-migrate", json!({}))?;
        ensure!(
            state["status"] != "failed" && state["status"] != "cancelled",
            "the migration failed: {state}"
        );
        let rounds = state["ram"]["dirty-sync-count"].as_u64().unwrap_or(0);
        if slow.is_some_and(|slow| rounds >= slow) {
            limit(vm, QUICK)?;
            slow = None;
        }
        Ok(Seen::of((state["status"] == "completed").then_some(rounds), || state.to_string()))
    })
}

/// Checks that the source's container tracked dirty pages during both migrations, that its bitmaps were read again and
/// again, and that they had pages that the device wrote to and no others. QEMU puts off the end of tracking until L2 runs
/// again, which at the source it does only after the first migration.
fn tracked(lab: &Lab, source: &[Call], destination: &[Call], pages: u64) {
    let calls: Vec<Dirty> = source.iter().filter_map(Call::dirty).collect();
    let mut problems = Vec::new();
    let changes: Vec<&Dirty> = calls.iter().filter(|call| !matches!(call, Dirty::Read(_))).collect();
    if changes != [&Dirty::Start, &Dirty::Stop, &Dirty::Start] || calls.first() != Some(&Dirty::Start) {
        problems.push(format!("tracking began and ended like this: {changes:?}"));
    }
    let there = destination.iter().filter_map(Call::dirty).count();
    if there > 0 {
        problems.push(format!("{there} calls at the destination"));
    }
    let last = calls.iter().rposition(|call| *call == Dirty::Start).unwrap_or(0);
    let pages_of = |call: &Dirty| match call {
        Dirty::Read(dirty) => Some(*dirty),
        _ => None,
    };
    let read: Vec<u64> = calls[last..].iter().filter_map(pages_of).collect();
    let with = read.iter().filter(|dirty| **dirty > 0).count() as u64;
    let seen = format!("{} bitmaps, {with} with dirty pages", read.len());
    lab.report.check(Check::TrackedByContainer, &problems, &seen);

    let most = read.iter().max().copied().unwrap_or(0);
    let seen = format!("{seen}, at most {most}; the device writes to {pages}");
    lab.report.expect(Check::OnlyWrittenPagesDirty, with >= ROUNDS - 1 && most <= pages, &seen);
}

/// Checks what L2 found at the destination. The device had written `before` times when the migration began.
fn compared(lab: &Lab, vm: &mut Vm, pages: u64, before: u64) -> Result<()> {
    let (loaded, written, lost, first_lost, changed) =
        vm.next_event("L2 to compare", |event| match event {
            Event::Migrated { loaded, written, lost, first_lost, changed } => {
                Some((*loaded, *written, *lost, *first_lost, *changed))
            }
            _ => None,
        })?;
    let first = first_lost.map_or_else(String::new, |at| format!(", the first at {at:#x}"));
    let seen = format!("{lost} words of {written} writes to {pages} pages are lost{first}");
    lab.report.expect(Check::DeviceWrites, lost == 0, &seen);
    let seen = format!("{before} writes before the migration, {loaded} at its end, {written} in the end");
    lab.report.expect(Check::DeviceGoesOn, before + pages <= loaded && loaded < written, &seen);
    let seen = format!("{changed} words differ from what L2 wrote");
    lab.report.expect(Check::MemoryUnchanged, changed == 0, &seen);
    vm.wait_ready(|_| ()).map(drop)
}
