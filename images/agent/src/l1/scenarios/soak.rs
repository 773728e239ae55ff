//! Memory devices, blocks of a memory device, and a second device come and go in random order, and the guest is stopped and
//! reset, while its disk moves data. After each step the kernel has to hold exactly the guest's memory.
//!
//! With an IOMMU of its own, the guest decides itself what its disk reaches. Then each map and unmap has to be one that the
//! guest has asked for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use vfio_fast_protocol::job::{Container, Mode};
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::record::{Event, Record};
use vfio_fast_protocol::scenarios::soak::Check;
use vfio_fast_protocol::witness::{self, MappingSet};

use super::hotplug;
use super::virtio_mem::{self, BLOCK, MIB, Region};
use crate::l1::checks::mappings::Compared;
use crate::l1::checks::viommu_events::{Follower, TRACED};
use crate::l1::checks::{count, exit, mappings};
use crate::l1::command_line::CommandLine;
use crate::l1::lab::Lab;
use crate::l1::numbers::Numbers;
use crate::l1::qemu_trace;
use crate::l1::vm::Vm;
use crate::l1::{devices, proc, requests};

const DIMM_MIB: u64 = 128;
/// Memory devices of that size at a time. One slot more is the virtio-mem device's.
const DIMMS: usize = 3;
/// The maximum of the virtio-mem device.
const BLOCKS_MIB: u64 = 256;
/// Options of a kernel that unmaps at once what its devices have used.
const IN_SINGLE_PAGES: &str = "intel_iommu=on iommu=nopt iommu.strict=1";
/// Transfers of data after each step.
const TRANSFERS: u64 = 2;
/// More than an IOMMU of the guest's ever maps of its memory at the same time. RAM is larger.
const FEW: u64 = 16 * MIB;
/// Every step has to be made that often, however short the run is.
const AT_LEAST: u32 = 1;

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Plug,
    Unplug,
    Resize,
    AddDevice,
    RemoveDevice,
    Pause,
    Reset,
}

impl Step {
    const ALL: [Self; 7] = [
        Self::Plug,
        Self::Unplug,
        Self::Resize,
        Self::AddDevice,
        Self::RemoveDevice,
        Self::Pause,
        Self::Reset,
    ];
    /// A reset takes as long as ten other steps.
    const ODDS: [u64; 7] = [8, 6, 10, 6, 6, 3, 1];

    fn draw(numbers: &mut Numbers) -> Self {
        let mut at = numbers.below(Self::ODDS.iter().sum());
        for (step, odds) in Self::ALL.into_iter().zip(Self::ODDS) {
            match at.checked_sub(odds) {
                Some(rest) => at = rest,
                None => return step,
            }
        }
        unreachable!("a number below the sum of all")
    }
}

/// The machine, and what was done to it.
struct Soak<'a> {
    lab: &'a Lab,
    vm: Vm,
    region: Region,
    /// Compares what the guest's IOMMU is asked for with what is mapped, if the guest has one.
    viommu: Option<Follower>,
    numbers: Numbers,
    /// The memory devices that are plugged, by number.
    dimms: Vec<u64>,
    dimms_made: u64,
    blocks_mib: u64,
    has_second: bool,
    happened: BTreeMap<Step, u32>,
    /// Transfers of data, each found right, and their bytes.
    transfers: u64,
    moved: u64,
    wrong: Vec<String>,
    threads: Vec<String>,
}

pub fn run(lab: &Lab) -> Result<()> {
    with(lab, None)
}

/// The same, with an IOMMU of the guest's if it is followed.
pub fn with(lab: &Lab, viommu: Option<Follower>) -> Result<()> {
    let pinned = exit::pinned_pages()?;
    let share = if lab.job.container == Container::Iommufd { "on" } else { "off" };
    let memory = format!(",slots={},maxmem=8G", DIMMS + 1);
    let line = CommandLine::new(lab);
    let (line, options) = match viommu {
        None => (line.q35("", &memory), ""),
        Some(_) => {
            let line = line.q35(",kernel-irqchip=split", &memory);
            (line.args(["-device", "intel-iommu,intremap=on,caching-mode=on"]), IN_SINGLE_PAGES)
        }
    };
    let mut traced = vec!["virtio_mem_*"];
    traced.extend(viommu.iter().flat_map(|_| TRACED));
    let line = line
        .args([
            "-object",
            &format!("memory-backend-ram,id=blocks,size={BLOCKS_MIB}M,reserve=off,share={share}"),
        ])
        .args([
            "-device",
            &format!("virtio-mem-pci,id=vmem,memdev=blocks,block-size={BLOCK},requested-size=0"),
        ])
        .root_port(1)
        .device(0, "dut")
        .trace(&traced)
        // Memory that is unplugged later must hold nothing that cannot move.
        .linux(
            &L2Job::Stream(lab.disk_job(lab.job.l2_memory_mib / 2)),
            &format!("memhp_default_state=online_movable {options}"),
        );
    let mut vm = Vm::start(lab, &line)?;
    let region = Region::of(&mut vm)?;
    vm.qmp.run("cont", json!({}))?;
    let numbers = Numbers::new(lab.job.image_seed);
    let mut soak = Soak {
        lab,
        vm,
        region,
        viommu,
        numbers,
        dimms: Vec::new(),
        dimms_made: 0,
        blocks_mib: 0,
        has_second: false,
        happened: BTreeMap::new(),
        transfers: 0,
        moved: 0,
        wrong: Vec::new(),
        threads: Vec::new(),
    };
    soak.transfers()?;
    lab.report.step(&format!("steps of the seed {:#x}", lab.job.image_seed));
    let end = Instant::now() + Duration::from_secs(lab.job.soak_s);
    let mut made = Ok(());
    while made.is_ok() && (Instant::now() < end || soak.missing().next().is_some()) {
        made = soak.step(Instant::now() >= end);
    }
    // What was wrong before is often why a step fails.
    soak.report();
    made?;
    soak.finish(pinned)
}

impl Soak<'_> {
    /// The steps that were not made often enough.
    fn missing(&self) -> impl Iterator<Item = Step> {
        let enough = |step: &Step| self.happened.get(step).is_some_and(|times| *times >= AT_LEAST);
        Step::ALL.into_iter().filter(move |step| !enough(step))
    }

    fn is_possible(&self, step: Step) -> bool {
        match step {
            Step::Plug => self.dimms.len() < DIMMS,
            Step::Unplug => !self.dimms.is_empty(),
            Step::AddDevice => !self.has_second,
            Step::RemoveDevice => self.has_second,
            Step::Resize | Step::Pause | Step::Reset => true,
        }
    }

    /// A step that is possible now. When the time is up, chance decides only where no missing one is possible: a rare
    /// step would come too late.
    fn choose(&mut self, time_is_up: bool) -> Step {
        let missing = self.missing().find(|step| time_is_up && self.is_possible(*step));
        missing.unwrap_or_else(|| {
            loop {
                let step = Step::draw(&mut self.numbers);
                if self.is_possible(step) {
                    break step;
                }
            }
        })
    }

    /// Makes a step, and looks at the result.
    fn step(&mut self, time_is_up: bool) -> Result<()> {
        let step = self.choose(time_is_up);
        self.make(step).with_context(|| format!("{step:?}, after {:?}", self.happened))?;
        *self.happened.entry(step).or_default() += 1;
        self.look(step)?;
        self.transfers().with_context(|| format!("after {step:?}"))
    }

    fn make(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Plug => self.plug(),
            Step::Unplug => {
                let n = self.numbers.below(self.dimms.len() as u64) as usize;
                let dimm = self.dimms.swap_remove(n);
                requests::unplug(self.lab, &mut self.vm, &format!("dimm{dimm}"))?;
                self.command("object-del", json!({ "id": format!("mem{dimm}") }))
            }
            Step::Resize => {
                self.blocks_mib = self.numbers.below(BLOCKS_MIB * MIB / BLOCK + 1) * BLOCK / MIB;
                self.region.resize(self.lab, &mut self.vm, self.blocks_mib)
            }
            Step::AddDevice => {
                let mut device = devices::to_add(self.lab, 1, self.lab.job.mode);
                device["id"] = "second".into();
                device["bus"] = "rp1".into();
                self.has_second = true;
                self.command("device_add", device)
            }
            Step::RemoveDevice => {
                self.has_second = false;
                requests::unplug(self.lab, &mut self.vm, "second")
            }
            Step::Pause => {
                self.command("stop", json!({}))?;
                self.command("cont", json!({}))
            }
            Step::Reset => {
                self.command("system_reset", json!({}))?;
                self.vm.wait_event("L2 to boot again", |event| matches!(event, Event::Up { .. }))?;
                // The device gives its blocks up, and the guest plugs them again.
                virtio_mem::settled(&mut self.vm, self.blocks_mib, self.lab.wait())
            }
        }
    }

    fn plug(&mut self) -> Result<()> {
        self.dimms_made += 1;
        let n = self.dimms_made;
        self.dimms.push(n);
        hotplug::plug(self.lab, &mut self.vm, n, DIMM_MIB, None)
    }

    fn command(&mut self, command: &str, arguments: serde_json::Value) -> Result<()> {
        self.vm.qmp.run(command, arguments).map(drop)
    }

    /// Compares what is mapped with the guest's memory.
    fn compare(&mut self) -> Result<Compared> {
        let plugged = virtio_mem::plugged(&qemu_trace::text()?)?;
        mappings::compare(self.lab, &mut self.vm, 1, |memory| self.region.without_unplugged(memory, &plugged))
    }

    /// What is wrong with what is mapped.
    fn problems(&mut self) -> Result<Vec<String>> {
        let Some(follower) = &mut self.viommu else { return Ok(self.compare()?.problems) };
        let (trace, calls) =
            mappings::quietly(&mut self.vm, |vm| Ok((qemu_trace::text()?, vm.witnessed()?)))?;
        let mut problems = std::mem::take(&mut follower.follow(&trace, &calls)?.problems);
        let bytes: u64 = witness::replay(&calls)?.values().flatten().map(|(_, held)| held.size).sum();
        if bytes >= FEW {
            problems.push(format!("{bytes} bytes are mapped although the guest's IOMMU is on"));
        }
        Ok(problems)
    }

    /// What has to be mapped in the end. Only the guest's driver knows what it wants mapped, so what is mapped stands for
    /// it.
    fn wanted(&mut self) -> Result<MappingSet> {
        if self.viommu.is_none() {
            return Ok(self.compare()?.wanted);
        }
        Ok(witness::replay(&self.vm.witnessed()?)?.into_values().next().unwrap_or_default())
    }

    /// Notes what is wrong after a step.
    fn look(&mut self, step: Step) -> Result<()> {
        let problems = self.problems()?;
        let times = self.happened[&step];
        self.wrong.extend(problems.into_iter().map(|problem| format!("{step:?} {times}: {problem}")));
        let threads = proc::threads(self.vm.pid)?;
        let ours = threads.iter().filter(|thread| thread.is_of_library());
        self.threads.extend(ours.map(|thread| format!("{step:?} {times}: thread {} is alive", thread.name)));
        Ok(())
    }

    /// Waits until the guest has moved data, and found it right.
    fn transfers(&mut self) -> Result<()> {
        for _ in 0..TRANSFERS {
            self.moved += self.vm.next_event("L2 to move data", |event| match event {
                Event::Moved { bytes, .. } => Some(*bytes),
                _ => None,
            })?;
            self.transfers += 1;
        }
        Ok(())
    }

    /// The checks of what was seen after each step.
    fn report(&mut self) {
        let (lab, happened) = (self.lab, format!("{:?}", self.happened));
        self.wrong.truncate(20);
        self.threads.truncate(20);
        let maps = self.viommu.as_ref().map(|follower| format!(", {}", follower.counts()));
        let seen = format!("{happened}{}", maps.unwrap_or_default());
        lab.report.check(Check::MappingsThroughout, &self.wrong, &seen);
        lab.report.check(Check::NoThreadsThroughout, &self.threads, "none after any step");
        let steps: u32 = self.happened.values().sum();
        let all = self.transfers == TRANSFERS * u64::from(steps + 1);
        let seen = format!("{} transfers of {} bytes in all, {steps} steps", self.transfers, self.moved);
        lab.report.expect(Check::DataThroughout, all, &seen);
        let never: Vec<String> = self.missing().map(|step| format!("never: {step:?}")).collect();
        lab.report.check(Check::EverythingHappened, &never, &happened);
    }

    fn finish(mut self, pinned: u64) -> Result<()> {
        let lab = self.lab;
        // A guest with an IOMMU maps and unmaps as long as it runs.
        self.command("stop", json!({}))?;
        let wanted = self.wanted()?;
        let mut facts = count::facts(&self.vm, &wanted)?;
        count::witnesses_agree(lab, &self.vm, &facts, Check::WitnessesAgree)?;
        // What was mapped for the second device is counted in the library of another container then.
        if lab.job.mode == Mode::Fast && self.viommu.is_none() {
            count::stats_agree(lab, &mut self.vm, &mut facts, Check::StatsAgree)?;
        }
        lab.report.send(&Record::Facts(facts));
        self.vm.quit()?;
        let left: Vec<String> = exit::still_pinned(pinned)?.into_iter().collect();
        lab.report.check(Check::NothingLeft, &left, "no page is pinned");
        Ok(())
    }
}
