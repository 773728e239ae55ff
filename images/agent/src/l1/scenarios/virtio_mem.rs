//! A memory device of which the guest plugs and unplugs blocks: each block is a mapping of its own, and nothing that is
//! unplugged is mapped. The blocks of a request are one commit of the library. If a block cannot be mapped, its whole
//! request is undone, and the guest has to wait.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vfio_fast_protocol::job::{Container, DiskLayout, Mode};
use vfio_fast_protocol::l2_job::{DiskJob, L2Job};
use vfio_fast_protocol::record::{Event, Record};
use vfio_fast_protocol::scenarios::virtio_mem::Check;
use vfio_fast_protocol::witness::{self, Call, Mapping, MappingSet};

use crate::l1::checks::{count, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::faults::{self, Fault};
use crate::l1::lab::Lab;
use crate::l1::requests::{self, Progress};
use crate::l1::vm::Vm;
use crate::l1::{limits, proc, qemu_trace};
use crate::pagemap::Pagemap;
use crate::wait::{Seen, wait_for};

pub(super) const MIB: u64 = 1 << 20;
/// The maximum size of the device.
const MAX_MIB: u64 = 1024;
/// What is mapped and unmapped at once.
pub(super) const BLOCK: u64 = 2 * MIB;
const PAGE: u64 = 4096;

/// Plugged while L2 boots; then fewer, which ends amid a memory block of Linux (128 MiB); then more, with the hole filled.
const FIRST_MIB: u64 = 256;
const SHRUNK_MIB: u64 = 100;
const GROWN_MIB: u64 = 160;
/// Asked for while so little more memory may be locked; and asked for when it may be again.
const REFUSED_MIB: u64 = 416;
const LOCKABLE: u64 = 16 * BLOCK;
const LAST_MIB: u64 = 288;
/// The block that the kernel refuses: so many that are not plugged come before it.
const AMID: usize = 20;
/// A little longer than QEMU waits with another report.
const REPORT_INTERVAL: Duration = Duration::from_secs(11);

/// Responses of a virtio-mem device.
const ACK: u64 = 0;
const BUSY: u64 = 2;
const ENOMEM: i32 = 12;

/// The two checks of what is mapped at one moment: all memory, and the blocks alone.
type Moment = (Check, Check);

const AFTER_REALIZE: Moment = (Check::MappingsAfterRealize, Check::BlocksAfterRealize);
const AFTER_PLUG: Moment = (Check::MappingsAfterPlug, Check::BlocksAfterPlug);
const AFTER_UNPLUG: Moment = (Check::MappingsAfterUnplug, Check::BlocksAfterUnplug);
const AFTER_PLUG_AGAIN: Moment = (Check::MappingsAfterPlugAgain, Check::BlocksAfterPlugAgain);
const AFTER_REFUSAL: Moment = (Check::MappingsAfterRefusal, Check::BlocksAfterRefusal);
const AFTER_RAISE: Moment = (Check::MappingsAfterRaise, Check::BlocksAfterRaise);
const AFTER_RESET: Moment = (Check::MappingsAfterReset, Check::BlocksAfterReset);

pub fn run(lab: &Lab) -> Result<()> {
    let job = &lab.job;
    // A limit that counts, and that is far enough at first.
    limits::give_up_lock_right()?;
    limits::set_memlock(None, (job.l2_memory_mib + 2 * MAX_MIB) * MIB)?;
    // Shared memory is a memfd, of which blocks are discarded in another way.
    let share = if job.container == Container::Iommufd { "on" } else { "off" };
    // Programs get movable memory first where there is some: the device is given what was plugged.
    let data = DiskJob { memory_mib: Some(job.l2_memory_mib + FIRST_MIB / 2), ..lab.disk_job(FIRST_MIB / 2) };
    let line = CommandLine::new(lab)
        .q35("", ",maxmem=8G")
        .args(["-object", &format!("memory-backend-ram,id=mem1,size={MAX_MIB}M,reserve=off,share={share}")])
        .args([
            "-device",
            &format!("virtio-mem-pci,id=vmem,memdev=mem1,block-size={BLOCK},requested-size={FIRST_MIB}M"),
        ])
        .device(0, "dut")
        .trace(&["virtio_mem_*"])
        .faults()
        .linux(&L2Job::Disk(data), "memhp_default_state=online_movable");
    let mut vm = Vm::start(lab, &line)?;
    let region = Region::of(&mut vm)?;
    region.mapped(lab, &mut vm, AFTER_REALIZE, 0)?;

    lab.report.step("plug");
    vm.qmp.run("cont", json!({}))?;
    let disk = DiskLayout::of_mib(job.disk_mib);
    boot(lab, &mut vm, &region, Check::DataBoot, disk.read_by(0).1 + disk.written_by(0).1)?;
    settled(&mut vm, FIRST_MIB, lab.wait())?;
    region.mapped(lab, &mut vm, AFTER_PLUG, FIRST_MIB)?;

    lab.report.step("unplug");
    let before = vm.witnessed()?.len();
    region.resize(lab, &mut vm, SHRUNK_MIB)?;
    region.mapped(lab, &mut vm, AFTER_UNPLUG, SHRUNK_MIB)?;
    let gone = (FIRST_MIB - SHRUNK_MIB) * MIB;
    report_touched(lab, Check::UnpluggedAlone, &vm.witnessed()?[before..], 0, gone);

    lab.report.step("plug again");
    let before = vm.witnessed()?.len();
    let commits_before = commits(lab, &mut vm)?;
    region.resize(lab, &mut vm, GROWN_MIB)?;
    report_commits(lab, &mut vm, commits_before)?;
    let wanted = region.mapped(lab, &mut vm, AFTER_PLUG_AGAIN, GROWN_MIB)?;
    let come = (GROWN_MIB - SHRUNK_MIB) * MIB;
    report_touched(lab, Check::PluggedAlone, &vm.witnessed()?[before..], come, 0);
    region.filled(lab, &vm)?;
    mappings::no_threads(lab, &vm, Check::NoThreadsAfterPlugAgain)?;
    // Before anything fails: of a map that failed the IOMMU core has counted the part that worked.
    let mut facts = count::facts(&vm, &wanted)?;
    count::witnesses_agree(lab, &vm, &facts, Check::WitnessesAgree)?;
    if job.mode == Mode::Fast {
        count::stats_agree(lab, &mut vm, &mut facts, Check::StatsAgree)?;
    }
    lab.report.send(&Record::Facts(facts));

    lab.report.step("too little lockable memory");
    refuse(lab, &mut vm, &region, &wanted)?;

    lab.report.step("enough again");
    limits::set_memlock(Some(vm.pid), (job.l2_memory_mib + 2 * MAX_MIB) * MIB)?;
    region.resize(lab, &mut vm, LAST_MIB)?;
    region.mapped(lab, &mut vm, AFTER_RAISE, LAST_MIB)?;

    lab.report.step("a block that the kernel refuses");
    refuse_block(lab, &mut vm, &region)?;

    lab.report.step("reset");
    vm.qmp.run("system_reset", json!({}))?;
    let bytes = disk.written_by(0).1 + disk.read_by(1).1 + disk.written_by(1).1;
    boot(lab, &mut vm, &region, Check::DataReset, bytes)?;
    settled(&mut vm, LAST_MIB, lab.wait())?;
    region.mapped(lab, &mut vm, AFTER_RESET, LAST_MIB)?;
    mappings::no_threads(lab, &vm, Check::NoThreadsAfterReset)?;
    vm.quit().map(drop)
}

/// Where the device has its memory.
pub(super) struct Region {
    address: u64,
}

impl Region {
    pub(super) fn of(vm: &mut Vm) -> Result<Self> {
        let address = device(vm)?["memaddr"].as_u64().context("the memory device has no address")?;
        Ok(Self { address })
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    fn contains(&self, address: u64) -> bool {
        (self.address..self.address + MAX_MIB * MIB).contains(&address)
    }

    /// Asks the guest to have so much plugged, and waits until it has. QEMU notifies the guest of a
    /// size that it has been asked for before, too.
    pub(super) fn resize(&self, lab: &Lab, vm: &mut Vm, mib: u64) -> Result<()> {
        let cause = format!("requested-size {mib}M");
        requests::repeat(
            lab,
            &cause,
            vm,
            |vm, _| request(vm, mib),
            |vm, within| {
                Ok(match settled(vm, mib, within) {
                    Ok(()) => Progress::Fulfilled(()),
                    Err(error) => Progress::Pending(format!("{error:#}")),
                })
            },
        )
    }

    /// Checks all of the guest's memory, and that each block that QEMU let the guest plug is one mapping, and no other is.
    fn mapped(&self, lab: &Lab, vm: &mut Vm, (all, blocks): Moment, mib: u64) -> Result<MappingSet> {
        let plugged = plugged(&qemu_trace::text()?)?;
        let wanted =
            mappings::mappings_of(lab, vm, all, 1, |memory| self.without_unplugged(memory, &plugged))?;
        let held = witness::replay(&vm.witnessed()?)?.into_values().next().unwrap_or_default();
        let mut problems = Vec::new();
        if plugged.len() as u64 * BLOCK != mib * MIB {
            problems.push(format!("{} blocks are plugged instead of {mib} MiB", plugged.len()));
        }
        let mapped: BTreeSet<(u64, u64)> =
            held.iter().filter(|(at, _)| self.contains(**at)).map(|(at, m)| (*at, m.size)).collect();
        let plugged: BTreeSet<(u64, u64)> = plugged.into_iter().map(|at| (at, BLOCK)).collect();
        let lines = |what: &str, extra: BTreeSet<&(u64, u64)>| -> Vec<String> {
            let line = |(at, size): &&(u64, u64)| format!("only {what}: {at:#x} + {size:#x}");
            extra.iter().take(5).map(line).collect()
        };
        problems.extend(lines("plugged", plugged.difference(&mapped).collect()));
        problems.extend(lines("mapped", mapped.difference(&plugged).collect()));
        let seen = format!("{} blocks, each mapped by itself", plugged.len());
        lab.report.check(blocks, &problems, &seen);
        Ok(wanted)
    }

    /// Checks that no memory is populated that is not plugged.
    fn filled(&self, lab: &Lab, vm: &Vm) -> Result<()> {
        let memory = witness::guest_memory(&vm.witnessed()?);
        let start = memory.get(&self.address).context("KVM does not have the device's memory")?.vaddr;
        let pages = Pagemap::of(vm.pid)?.exist(start..start + MAX_MIB * MIB)?;
        let blocks = pages.chunks((BLOCK / PAGE) as usize).zip((self.address..).step_by(BLOCK as usize));
        let filled: BTreeSet<u64> =
            blocks.filter(|(block, _)| block.contains(&true)).map(|(_, at)| at).collect();
        let plugged = plugged(&qemu_trace::text()?)?;
        let mut problems: Vec<String> =
            filled.difference(&plugged).take(5).map(|at| format!("{at:#x} is filled")).collect();
        // What is mapped is there: where that is not seen, nothing is.
        problems.extend(plugged.difference(&filled).take(5).map(|at| format!("{at:#x} is not there")));
        lab.report.check(
            Check::UnpluggedNotFilled,
            &problems,
            &format!("{} blocks are filled", filled.len()),
        );
        Ok(())
    }

    /// KVM has all of the device's memory. Of that, only what is plugged.
    pub(super) fn without_unplugged(
        &self,
        mut memory: MappingSet,
        plugged: &BTreeSet<u64>,
    ) -> Result<MappingSet> {
        let Some(slot) = memory.remove(&self.address) else {
            ensure!(!memory.keys().any(|at| self.contains(*at)), "KVM has the device's memory in pieces");
            return Ok(memory);
        };
        for &at in plugged {
            let vaddr = slot.vaddr + (at - self.address);
            memory.insert(at, Mapping { size: BLOCK, vaddr, flags: slot.flags });
        }
        Ok(memory)
    }
}

fn device(vm: &mut Vm) -> Result<Value> {
    let devices = vm.qmp.run("query-memory-devices", json!({}))?;
    let all = devices.as_array().context("the devices are no list")?;
    let device = all.iter().find(|device| device["type"] == "virtio-mem");
    Ok(device.with_context(|| format!("no virtio-mem device: {devices}"))?["data"].clone())
}

/// Waits until the guest has so much plugged.
pub(super) fn settled(vm: &mut Vm, mib: u64, within: Duration) -> Result<()> {
    wait_for(&format!("{mib} MiB to be plugged"), within, || {
        let now = device(vm)?["size"].as_u64().context("the memory device has no size")?;
        Ok(Seen::of((now == mib * MIB).then_some(()), || format!("{now} bytes are plugged")))
    })
}

fn request(vm: &mut Vm, mib: u64) -> Result<()> {
    vm.qmp.run("qom-set", size_of(mib))?;
    Ok(())
}

fn size_of(mib: u64) -> Value {
    json!({ "path": "/machine/peripheral/vmem", "property": "requested-size", "value": mib * MIB })
}

/// Addresses of the blocks that are plugged after what QEMU traced.
pub(super) fn plugged(trace: &str) -> Result<BTreeSet<u64>> {
    let mut plugged = BTreeSet::new();
    let mut asked = None;
    for line in trace.lines() {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        match name {
            "virtio_mem_plug_request" | "virtio_mem_unplug_request" => {
                let blocks = (qemu_trace::hex(rest, "addr=")?, qemu_trace::decimal(rest, "nb_blocks=")?);
                asked = Some((name == "virtio_mem_plug_request", blocks));
            }
            "virtio_mem_send_response" => {
                let Some((plug, (start, count))) = asked.take() else { continue };
                if qemu_trace::decimal(rest, "type=")? != ACK {
                    continue;
                }
                for block in (0..count).map(|n| start + n * BLOCK) {
                    let changed = if plug { plugged.insert(block) } else { plugged.remove(&block) };
                    ensure!(changed, "block {block:#x} was plugged or unplugged twice");
                }
            }
            "virtio_mem_unplugged_all" => plugged.clear(),
            _ => {}
        }
    }
    Ok(plugged)
}

/// How many requests the guest has made to plug blocks.
fn plug_requests(trace: &str) -> u64 {
    trace.lines().filter(|line| line.starts_with("virtio_mem_plug_request ")).count() as u64
}

/// How many requests got that response.
fn responses(trace: &str, response: u64) -> usize {
    let line = format!("virtio_mem_send_response type={response}");
    trace.lines().filter(|said| **said == line).count()
}

/// A boot of L2, which moves its data through what was plugged: the check `data-<step>`.
fn boot(lab: &Lab, vm: &mut Vm, region: &Region, check: Check, planned: u64) -> Result<()> {
    let mut moved = Vec::new();
    vm.wait_ready(|event| moved.push(event.clone()))?;
    let (mut bytes, mut low, mut high) = (0, u64::MAX, 0);
    for event in moved {
        if let Event::Moved { bytes: now, lowest, highest, .. } = event {
            bytes += now;
            low = low.min(lowest);
            high = high.max(highest);
        }
    }
    let seen = format!("{bytes} bytes moved, DMA between {low:#x} and {high:#x}");
    let mut problems = Vec::new();
    if bytes != planned {
        problems.push(format!("{seen}; planned were {planned}"));
    }
    if !region.contains(high) {
        problems.push(format!("{seen}: nothing of it in the memory at {:#x}", region.address));
    }
    lab.report.check(check, &problems, &seen);
    Ok(())
}

/// What changed: so many bytes were mapped, and so many unmapped.
fn report_touched(lab: &Lab, check: Check, calls: &[Call], mapped: u64, unmapped: u64) {
    let sum = |bytes: &dyn Fn(&Call) -> u64| -> u64 { calls.iter().map(bytes).sum() };
    let now_mapped = sum(&|c| if c.mapped() { c.size } else { 0 });
    let now_unmapped = sum(&|c| if c.unmapped() { c.out } else { 0 });
    let seen = format!("{now_mapped} bytes mapped, {now_unmapped} unmapped");
    let seen = format!("{seen}; expected are {mapped} and {unmapped}");
    lab.report.expect(check, (now_mapped, now_unmapped) == (mapped, unmapped), &seen);
}

/// Checks that all blocks of a request were mapped by one commit of the library: `one-commit-per-request`. `before` is
/// what [`commits`] returned before the guest was asked for more.
fn report_commits(lab: &Lab, vm: &mut Vm, before: Option<(u64, u64)>) -> Result<()> {
    let (Some((commits_before, requests_before)), Some((commits, requests))) = (before, commits(lab, vm)?)
    else {
        return Ok(());
    };
    let (commits, requests) = (commits - commits_before, requests - requests_before);
    let blocks = (GROWN_MIB - SHRUNK_MIB) * MIB / BLOCK;
    let seen = format!("{blocks} blocks in {requests} requests: {commits} commits");
    lab.report.expect(Check::OneCommitPerRequest, commits == requests && requests < blocks / 2, &seen);
    Ok(())
}

/// How many commits the library has made, and how many requests to plug blocks the guest has made, so far.
fn commits(lab: &Lab, vm: &mut Vm) -> Result<Option<(u64, u64)>> {
    if lab.job.mode != Mode::Fast {
        return Ok(None);
    }
    let commits = count::library_stats(vm)?["commits"].as_u64();
    let commits = commits.context("the library does not count its commits")?;
    Ok(Some((commits, plug_requests(&qemu_trace::text()?))))
}

/// Too little memory may be locked for the blocks of a request: `rolled-back`, `alive-after-refusal`,
/// `locked-after-refusal`. Without the library, some are mapped before one cannot be; with it, none is.
fn refuse(lab: &Lab, vm: &mut Vm, region: &Region, wanted: &MappingSet) -> Result<()> {
    // All that is mapped counts, but for BARs.
    let bars = proc::device_memory(vm.pid)?;
    let counted: u64 = wanted.values().filter(|m| !proc::is_in(&bars, m.vaddr)).map(|m| m.size).sum();
    limits::set_memlock(Some(vm.pid), counted + LOCKABLE)?;
    let locked = count::locked_bytes(lab, vm)?;
    if lab.job.mode == Mode::Fast {
        request_refused(lab, vm, counted + LOCKABLE)?;
    }
    let refusals = preflight_refusals(lab, vm)?;
    let before = vm.witnessed()?.len();
    let busy = responses(&qemu_trace::text()?, BUSY);
    let busy_seen = fail(lab, vm, REFUSED_MIB, counted + LOCKABLE)?;
    let calls = vm.witnessed()?.split_off(before);
    let mapped: u64 = calls.iter().filter(|c| c.mapped()).map(|c| c.size).sum();
    let unmapped: u64 = calls.iter().filter(|c| c.unmapped()).map(|c| c.out).sum();
    let refused: Vec<i32> = calls.iter().filter(|c| c.is_map() && !c.mapped()).map(|c| c.errno).collect();
    let explained = preflight_refusals(lab, vm)? - refusals;
    let seen = format!(
        "{mapped} bytes mapped, errno {refused:?} from the kernel, {explained} explained by the limit, {unmapped} unmapped, {} blocks plugged in that time",
        (GROWN_MIB * MIB).abs_diff(device(vm)?["size"].as_u64().unwrap_or(0)) / BLOCK
    );
    let mut problems = Vec::new();
    if let Err(error) = busy_seen {
        problems.push(format!("{error:#}; {seen}"));
    }
    // The library compares all blocks of the request with the limit before it maps the first.
    let (expected, as_it_should) = match lab.job.mode {
        Mode::Fast => (0, refused.is_empty() && explained == 1),
        _ => (LOCKABLE, refused == [ENOMEM] && explained == 0),
    };
    if mapped != expected || unmapped != mapped || !as_it_should {
        problems
            .push(format!("{seen}; {expected} should have been mapped, then one refused, and all unmapped"));
    }
    lab.report.check(Check::RolledBack, &problems, &seen);
    if lab.job.mode == Mode::Fast {
        report_reported(lab, vm)?;
        report_counted(lab, vm, busy, counted + LOCKABLE)?;
    }
    region.mapped(lab, vm, AFTER_REFUSAL, GROWN_MIB)?;
    let now = count::locked_bytes(lab, vm)?;
    lab.report.expect(
        Check::LockedAfterRefusal,
        now == locked,
        &format!("{now} bytes are locked, were {locked}"),
    );
    let status = vm.qmp.status()?;
    lab.report.expect(Check::AliveAfterRefusal, status == "running", &format!("the VM is {status}"));
    Ok(())
}

/// Lets the guest follow a request for which too little memory may be locked, and waits for the device to refuse it.
fn fail(lab: &Lab, vm: &mut Vm, mib: u64, allowed: u64) -> Result<Result<()>> {
    let busy = responses(&qemu_trace::text()?, BUSY);
    // The limit is lowered after the request was accepted, and before the guest follows it.
    vm.qmp.run("stop", json!({}))?;
    limits::set_memlock(Some(vm.pid), (lab.job.l2_memory_mib + 2 * MAX_MIB) * MIB)?;
    request(vm, mib)?;
    limits::set_memlock(Some(vm.pid), allowed)?;
    vm.qmp.run("cont", json!({}))?;
    Ok(busy_again(lab, busy))
}

/// Waits until the device has refused more than `before` requests.
fn busy_again(lab: &Lab, before: usize) -> Result<()> {
    wait_for("the device to report to the guest that it is busy", lab.wait(), || {
        let more = responses(&qemu_trace::text()?, BUSY) - before;
        Ok(Seen::of((more > 0).then_some(()), || "no such response".to_owned()))
    })
}

/// The kernel refuses a block amid a request, which nobody could foresee: all that was mapped for the request is unmapped,
/// `refused-block-undone`.
fn refuse_block(lab: &Lab, vm: &mut Vm, region: &Region) -> Result<()> {
    let plugged = plugged(&qemu_trace::text()?)?;
    let unplugged = (region.address..).step_by(BLOCK as usize).filter(|at| !plugged.contains(at));
    let block = unplugged.take(AMID + 1).last().context("no block is left")?;
    let before = vm.witnessed()?.len();
    let busy = responses(&qemu_trace::text()?, BUSY);
    faults::arm(Fault::Full, block..=block, BLOCK, u64::MAX)?;
    request(vm, REFUSED_MIB)?;
    let busy_seen = busy_again(lab, busy);
    vm.qmp.run("stop", json!({}))?;
    faults::disarm()?;
    // L2 asks again after a while, unless it has to have no more than it has.
    request(vm, LAST_MIB)?;
    let requests = responses(&qemu_trace::text()?, BUSY) - busy;
    let calls = vm.witnessed()?.split_off(before);
    vm.qmp.run("cont", json!({}))?;
    busy_seen?;
    let mapped: u64 = calls.iter().filter(|c| c.mapped()).map(|c| c.size).sum();
    let unmapped: u64 = calls.iter().filter(|c| c.unmapped()).map(|c| c.out).sum();
    let refused: Vec<(u64, i32)> =
        calls.iter().filter(|c| c.is_map() && !c.mapped()).map(|c| (c.iova, c.errno)).collect();
    let undone = mapped > 0 && unmapped == mapped && refused == vec![(block, ENOMEM); requests];
    let seen =
        format!("{mapped} bytes mapped, {unmapped} unmapped, {requests} requests, refused {refused:x?}");
    lab.report.expect(Check::RefusedBlockUndone, undone, &seen);
    Ok(())
}

/// A failure within ten seconds of a report is counted, and the next report has the number: together they are all
/// requests that the device has refused since it had refused `before`. On a slow machine none may be within ten seconds,
/// so this tries more than once.
fn report_counted(lab: &Lab, vm: &mut Vm, before: usize, allowed: u64) -> Result<()> {
    let (mut failures, mut reports, mut counted) = (0, 0, 0);
    for _ in 0..3 {
        fail(lab, vm, REFUSED_MIB - 2, allowed)??;
        thread::sleep(REPORT_INTERVAL);
        fail(lab, vm, REFUSED_MIB, allowed)??;
        vm.qmp.run("stop", json!({}))?;
        failures = responses(&qemu_trace::text()?, BUSY) - before;
        let errors = vm.stderr()?;
        vm.qmp.run("cont", json!({}))?;
        reports = errors.lines().filter(|line| line.contains("for a vIOMMU or virtio-mem")).count();
        let number =
            |line: &str| line.strip_suffix(" more such failures were not reported")?.parse::<usize>().ok();
        counted = errors.lines().filter_map(number).sum();
        if counted > 0 {
            break;
        }
    }
    let seen = format!("{failures} failures, {reports} reported, {counted} counted");
    lab.report.expect(Check::FailuresCounted, counted > 0 && reports + counted == failures, &seen);
    Ok(())
}

/// A size that cannot be mapped is refused before the guest is asked for it.
fn request_refused(lab: &Lab, vm: &mut Vm, allowed: u64) -> Result<()> {
    let reply = vm.qmp.attempt("qom-set", size_of(REFUSED_MIB))?;
    let text = reply.err().map_or_else(|| "the size was accepted".to_owned(), |refusal| refusal.0);
    let unchanged = device(vm)?["requested-size"] == GROWN_MIB * MIB;
    let explained = text.contains("-12 (Cannot allocate memory)")
        && text.contains("RLIMIT_MEMLOCK")
        && text.contains(&allowed.to_string());
    lab.report.expect(Check::RequestRefused, unchanged && explained, &text);
    Ok(())
}

/// The refused block is on standard error once, with the limit and what to raise.
fn report_reported(lab: &Lab, vm: &Vm) -> Result<()> {
    let errors = vm.stderr()?;
    let lines: Vec<&str> =
        errors.lines().filter(|line| line.contains("for a vIOMMU or virtio-mem")).collect();
    let seen = format!("{} such lines: {lines:?}", lines.len());
    let explained = lines.len() == 1 && lines[0].contains("-12 (") && lines[0].contains("RLIMIT_MEMLOCK");
    lab.report.expect(Check::RefusalReported, explained, &seen);
    Ok(())
}

/// How often the library named a limit as the reason why a map failed.
fn preflight_refusals(lab: &Lab, vm: &mut Vm) -> Result<u64> {
    if lab.job.mode != Mode::Fast {
        return Ok(0);
    }
    count::library_stats(vm)?["preflight_refusals"]
        .as_u64()
        .context("the library does not count its refusals")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLUG: &str = "virtio_mem_plug_request addr=0x100000000 nb_blocks=3\n\
                        virtio_mem_send_response type=0\n\
                        virtio_mem_unplug_request addr=0x100200000 nb_blocks=1\n\
                        virtio_mem_send_response type=0\n";

    #[test]
    fn blocks_are_followed() {
        let blocks = |text: &str| plugged(text).map(|blocks| blocks.into_iter().collect::<Vec<_>>());
        assert_eq!(blocks(PLUG).unwrap(), [0x1_0000_0000, 0x1_0040_0000]);
        let refused =
            "virtio_mem_plug_request addr=0x100200000 nb_blocks=1\nvirtio_mem_send_response type=2\n";
        assert_eq!(blocks(&format!("{PLUG}{refused}")).unwrap().len(), 2);
        assert_eq!(responses(&format!("{PLUG}{refused}"), BUSY), 1);
        assert_eq!(plug_requests(&format!("{PLUG}{refused}")), 2);
        assert_eq!(blocks(&format!("{PLUG}virtio_mem_unplugged_all \n")).unwrap(), [0u64; 0]);
        assert!(blocks(&format!("{PLUG}{PLUG}")).is_err());
    }
}
