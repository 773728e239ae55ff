//! The runs: one boot of L1 for each scenario and mode. Runs that are not timed run concurrently.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use vfio_fast_protocol::job::{Firmware, Job, Mode};
use vfio_fast_protocol::spec::{Program, ScenarioSpec};

use super::accel::Accel;
use super::bar::Bar;
use super::disk::Disk;
use super::iommu_trace;
use super::judge::{self, NotBooted, Verdict};
use super::l0;
use super::parts::Parts;
use super::phase::{Phase, Phases};
use super::records::log_text;
use super::scenario;
use super::splat;
use vfio_fast_assets::image::Payload;
use vfio_fast_assets::outcome::CannotRun;
use vfio_fast_assets::progress;

/// Maximum number of concurrent runs.
const WORKERS: usize = 2;
/// How often L1 is booted for one run, if the emulator fails each time.
const MAX_ATTEMPTS: u32 = 3;
/// Memory a run needs in addition to that of its machine.
const OVERHEAD_MIB: u64 = 1024;

/// State shared by all runs.
#[derive(Debug)]
pub struct Runs<'a> {
    pub parts: &'a Parts,
    /// Folder for results and logs.
    pub folder: &'a Path,
    /// Accelerator of L1.
    pub accel: Accel,
    pub phases: &'a Phases,
}

impl Runs<'_> {
    /// Runs every scenario in every mode. Completed runs are judged even if another could not run: the second value
    /// is the error that stopped the rest.
    pub fn all(&self, plans: &[ScenarioSpec]) -> (Vec<Verdict>, Result<()>) {
        let pairs =
            |plan: &ScenarioSpec| plan.modes.iter().map(|mode| (plan.clone(), *mode)).collect::<Vec<_>>();
        // A timed run has the machine to itself.
        let (timed, others): (Vec<&ScenarioSpec>, Vec<&ScenarioSpec>) =
            plans.iter().partition(|plan| plan.timed);
        let timed = timed.into_iter().flat_map(pairs).collect();
        let others = others.into_iter().flat_map(pairs).collect();
        let (mut verdicts, mut outcome) = self.queue(timed, 1);
        if outcome.is_ok() {
            let workers = workers(plans, available_mib().unwrap_or(0));
            let (more, end) = self.queue(others, workers);
            verdicts.extend(more);
            outcome = end;
        }
        (verdicts, outcome)
    }

    /// Processes the queue with this number of workers. Returns the verdicts in the order of the queue.
    fn queue(&self, runs: VecDeque<(ScenarioSpec, Mode)>, workers: usize) -> (Vec<Verdict>, Result<()>) {
        let runs = Mutex::new(runs.into_iter().enumerate().collect::<VecDeque<_>>());
        let done = Mutex::new((Vec::new(), Ok(())));
        let work = || {
            loop {
                // A separate statement, so that the queue is not locked during the run.
                let next = runs.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some((n, (plan, mode))) = next else { return };
                let result = self.run_with_retry(&plan, mode);
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                match result {
                    Ok(verdict) => done.0.push((n, verdict)),
                    Err(error) => {
                        runs.lock().unwrap_or_else(PoisonError::into_inner).clear();
                        done.1 = Err(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
        let (mut verdicts, outcome) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        verdicts.sort_by_key(|(n, _)| *n);
        (verdicts.into_iter().map(|(_, verdict)| verdict).collect(), outcome)
    }

    /// Boots L1, and boots it again if the emulator failed; see [`emulator_fault`]. A deterministic failure fails every
    /// attempt. The verdict counts the retries.
    fn run_with_retry(&self, plan: &ScenarioSpec, mode: Mode) -> Result<Verdict> {
        let name = plan.run_name(mode);
        let mut retries = BTreeMap::<String, u32>::new();
        let mut attempt = 1;
        loop {
            let mut result = self.one(plan, mode);
            let cause = match (&result, self.accel.of(plan.host)) {
                _ if attempt == MAX_ATTEMPTS => None,
                (_, Accel::Kvm) => None,
                (Ok(verdict), _) if verdict.passed() => None,
                (Ok(verdict), _) => emulator_fault(verdict),
                (Err(error), _) => error.downcast_ref::<NotBooted>().map(|_| "L1 did not reach user space"),
            };
            let Some(cause) = cause else {
                if let Ok(verdict) = &mut result {
                    verdict.retries.extend(retries);
                }
                return result;
            };
            let folder = self.folder.join(&name);
            let kept = folder.with_extension(format!("try-{attempt}"));
            progress::print(&format!(
                "    {name}: {cause}: booting L1 once more; logs of this try: {}",
                kept.display()
            ));
            fs::rename(&folder, kept)?;
            *retries.entry(format!("boot of L1, because {cause}")).or_default() += 1;
            attempt += 1;
        }
    }

    /// Boots L1 once.
    fn one(&self, plan: &ScenarioSpec, mode: Mode) -> Result<Verdict> {
        let parts = self.parts;
        let name = plan.run_name(mode);
        let folder = self.folder.join(&name);
        fs::create_dir_all(&folder)?;
        self.phases.enter(Phase::Boot(&name));
        require_memory(plan)?;
        let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
        let disk = Disk::create(&folder.join("disk.img"), plan.disk_mib, seed)?;
        let bar = folder.join("bar.img");
        let moved = plan.bar_mib().map(|mib| Bar::create(&bar, mib, &disk)).transpose()?;
        let (tests, bench) = match &plan.program {
            Program::Qemu
            | Program::Example
            | Program::CExamples
            | Program::KernelTests
            | Program::Debian => (Vec::new(), Vec::new()),
            Program::Conformance => (plan.expected_checks(mode), Vec::new()),
            Program::Bench(command) => (Vec::new(), command.clone()),
        };
        let job = Job {
            scenario: plan.scenario.to_owned(),
            mode,
            container: plan.container,
            iommu: plan.host.iommu,
            devices: plan.addresses(),
            l2_memory_mib: plan.l2_memory_mib,
            ram: plan.ram,
            firmware: plan.firmware,
            debian: plan.program == Program::Debian,
            sandboxed: plan.sandboxed,
            counted: plan.program == Program::Qemu && plan.starts.is_empty(),
            disk_mib: plan.disk_mib,
            image_seed: disk.image_seed,
            write_seed: disk.write_seed,
            starts: plan.starts.clone(),
            tests,
            bench,
            soak_s: plan.soak.as_secs(),
            wait_s: 300,
        };
        let initrd = folder.join("initrd.cpio");
        let program = match plan.program {
            Program::Qemu | Program::CExamples | Program::KernelTests | Program::Debian => None,
            Program::Conformance => parts.conformance_for(plan.host).filter(|_| !plan.preload),
            Program::Example => parts.example.clone(),
            Program::Bench(_) => parts.bench.clone(),
        };
        let mut programs: Vec<PathBuf> = program.into_iter().collect();
        programs.extend(plan.profiles.iter().flat_map(|_| parts.profiles.clone()));
        let (qemu, libraries) = parts.qemu_of(plan, mode)?;
        let payload = Payload {
            agent: parts.agent_for(plan.host)?,
            ovmf: plan.firmware == Firmware::Ovmf,
            debian: job.debian,
            qemu,
            libraries: &libraries,
            sysroot: parts.sysroot_for(plan)?,
            programs: &programs,
            job: &serde_json::to_vec(&job)?,
        };
        let guest = parts.guest_for(plan.host)?;
        guest.write_initrd(&payload, &initrd)?;
        let l1 = plan.l1();
        let mut command = l0::command(
            parts.emulator_for(plan.host)?,
            guest,
            self.accel,
            plan.host,
            l1.kernel_options,
            &initrd,
            &folder,
        );
        command.args(scenario::machine_arguments(&l1, plan.prealloc_l1));
        for (n, mib, has_ext4) in scenario::further_disks(plan) {
            let path = scenario::disk_path(&disk.path, n);
            fs::File::create(&path)?.set_len(mib << 20)?;
            if has_ext4 {
                Disk::format(&path)?;
            }
        }
        command.args(scenario::device_arguments(plan, &disk.path, &bar));
        if let Some(image) = parts.debian.as_ref().filter(|_| job.debian) {
            command.args(scenario::debian_arguments(image));
        }
        if plan.traces_invalidations() {
            command.args(l0::trace_invalidations(&folder));
        }
        if plan.traces_iommu {
            command.args(iommu_trace::arguments(&folder));
        }
        let told = l0::run(command, &folder, plan.limit, &name, || self.phases.enter(Phase::Run(&name)))?;
        let mut verdict = judge::one(plan, mode, told, &folder)?;
        if plan.writes_disk {
            verdict.checks.push(disk.check()?);
        }
        if let Some(moved) = moved.as_ref().filter(|_| job.maps_bars()) {
            verdict.checks.push(moved.check()?);
        }
        verdict.print_failures(0);
        // Initrds would add up to gigabytes, and the logs suffice to investigate a failure.
        fs::remove_file(initrd)?;
        if verdict.passed() {
            fs::remove_file(&disk.path)?;
            moved.map(|bar| fs::remove_file(bar.path)).transpose()?;
        }
        Ok(verdict)
    }
}

/// A fault of the emulated processors or clock that does not occur on real hardware. QEMU's TCG has such faults with
/// and without the library.
fn emulator_fault(verdict: &Verdict) -> Option<&'static str> {
    if verdict.stalled {
        // Its logs show the panic that was asked for, so they are not searched for other faults.
        return Some("L1 stopped responding");
    }
    let log = |name| log_text(&verdict.folder, name);
    if splat::has_triple_fault(&log("l0-qemu")) {
        return Some("an emulated processor had a triple fault or was reset");
    }
    if splat::stalled(&log("l1-console")) {
        return Some("an emulated processor stalled or its clock was unreliable");
    }
    None
}

/// The number of runs that fit into memory at the same time.
fn workers(plans: &[ScenarioSpec], available_mib: u64) -> usize {
    let largest = plans.iter().map(|plan| plan.l1().mib() + OVERHEAD_MIB).max().unwrap_or(1);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let fit = usize::try_from(available_mib / largest).unwrap_or(1);
    WORKERS.min(processors).min(fit).max(1)
}

/// Fails with exit code 69 if less memory is available than the scenario needs.
pub fn require_memory(plan: &ScenarioSpec) -> Result<()> {
    let (needed, available) = (plan.l1().mib() + OVERHEAD_MIB, available_mib()?);
    if available < needed {
        bail!(CannotRun(format!("{needed} MiB of memory are needed, {available} MiB are available")));
    }
    Ok(())
}

fn available_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    Ok(kib.context("/proc/meminfo has no MemAvailable")? >> 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_fit_into_memory() {
        let plans = scenario::chosen(&[]).unwrap();
        assert_eq!(workers(&plans, 0), 1);
        assert_eq!(workers(&plans, 7000), 1);
        let processors = std::thread::available_parallelism().unwrap().get();
        assert_eq!(workers(&plans, 1 << 20), WORKERS.min(processors));
    }
}
