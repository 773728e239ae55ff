//! The nested machines: stock QEMU and vfio-fast side by side, on real kernels.
//!
//! This machine (L0) emulates a host with an IOMMU (L1), which runs the QEMU under test, whose
//! guest (L2) moves data through a passthrough device. Everything that is judged comes from
//! witnesses outside the library.

mod accel;
mod disk;
mod judge;
mod l0;
mod phase;
mod records;
mod scenario;
mod splat;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use vfio_fast_agent::job::{Job, Mode};

use crate::cache::Cache;
use crate::debian::Debian;
use crate::image::{self, Guest, Payload};
use crate::outcome::CannotRun;
use crate::qemu::{self, Kind};
use crate::{install, packages, paths, progress};
use disk::Disk;
use judge::Verdict;
use phase::{Phase, Phases};
use scenario::Plan;

/// Which scenarios to run.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Args {
    /// Print the names of the scenarios and stop
    #[arg(long)]
    list: bool,
    /// Run only this scenario; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

/// What the machines are made of.
#[derive(Debug)]
struct Parts {
    guest: Guest,
    /// QEMU without the patches; also emulates L1.
    reference: PathBuf,
    /// QEMU with them.
    patched: PathBuf,
    /// The library patched QEMU loads.
    library: PathBuf,
    agent: PathBuf,
    witness: PathBuf,
}

/// Runs the scenarios asked for; all of them without arguments.
pub fn run(args: &Args) -> Result<()> {
    let plans = scenario::chosen(&args.only)?;
    if args.list {
        for plan in plans {
            println!("{:12} {}", plan.name(), plan.what);
        }
        return Ok(());
    }
    let start = Instant::now();
    let mut phases = Phases::default();
    phases.enter(Phase::Setup);
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    let run = new_run()?;
    let guest = Guest::prepare(&cache, &Debian::open(&cache)?)?;
    let reference = qemu::built(Kind::Stock)?;
    let patched = qemu::built(Kind::On)?;

    phases.enter(Phase::Build);
    let agent = progress::step("Build the agent", &run.join("agent.log"), image::build_agent)?;
    let witness = progress::step("Build the witness", &run.join("witness.log"), image::build_witness)?;
    let prefix = run.join("prefix");
    progress::step("Build the library", &run.join("library.log"), |log| install::into(&prefix, log))?;
    let library = prefix.join("lib").join(install::soname());
    let parts = Parts { guest, reference, patched, library, agent, witness };
    require_memory()?;
    let accel = accel::choose(&parts, &run)?;
    println!("    L1 runs under {accel}");

    let mut verdicts = Vec::new();
    for plan in &plans {
        for &mode in plan.modes {
            verdicts.push(one(&parts, &run, plan, mode, accel, &mut phases)?);
        }
    }
    phases.enter(Phase::Check);
    judge::compare_modes(&mut verdicts)?;
    table::write_json(&run.join("results.json"), &verdicts)?;
    table::print(&verdicts);
    let failed = verdicts.iter().filter(|v| !v.passed()).count();
    println!(
        "\n{} runs, {failed} failed, {}: {}",
        verdicts.len(),
        progress::elapsed(start.elapsed()),
        run.display()
    );
    if failed > 0 {
        bail!("{failed} of {} runs failed", verdicts.len());
    }
    Ok(())
}

/// One boot of L1.
fn one(
    parts: &Parts,
    run: &Path,
    plan: &Plan,
    mode: Mode,
    accel: accel::Accel,
    phases: &mut Phases,
) -> Result<Verdict> {
    let name = format!("{}-{}", plan.name(), scenario::mode_name(mode));
    let folder = run.join(&name);
    fs::create_dir_all(&folder)?;
    phases.enter(Phase::Boot(&name));
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let disk = Disk::create(&folder.join("disk.img"), plan.disk_mib, seed)?;
    let job = Job {
        scenario: plan.scenario,
        mode,
        devices: plan.addresses(),
        l2_memory_mib: plan.l2_memory_mib,
        disk_mib: plan.disk_mib,
        image_seed: disk.image_seed,
        write_seed: disk.write_seed,
        wait_s: 60,
    };
    let initrd = folder.join("initrd.cpio");
    let mut libraries = vec![parts.witness.clone()];
    let qemu = if mode == Mode::Reference {
        ("qemu-reference", parts.reference.as_path())
    } else {
        libraries.push(parts.library.clone());
        ("qemu-patched", parts.patched.as_path())
    };
    let payload = Payload {
        agent: &parts.agent,
        qemu: Some(qemu),
        libraries: &libraries,
        job: &serde_json::to_vec(&job)?,
    };
    parts.guest.write_initrd(&payload, &initrd)?;
    let mut command = l0::command(&parts.reference, &parts.guest, accel, &initrd, &folder);
    command.args(["-m", &format!("{}M", plan.l1_memory_mib())]);
    for spare in 1..plan.addresses().len() {
        fs::File::create(disk.path.with_extension(format!("{spare}.img")))?.set_len(1 << 20)?;
    }
    for device in plan.l0_devices(&disk.path) {
        command.args(device);
    }
    let told = l0::run(command, &folder, plan.limit, || phases.enter(Phase::Run(&name)))?;
    let mut verdict = judge::one(plan, mode, told, &folder)?;
    if plan.writes_disk {
        verdict.checks.push(disk.check()?);
    }
    verdict.print_failures(0);
    // Gigabytes of them would pile up; everything needed to look into a failure is in the logs.
    fs::remove_file(initrd)?;
    if verdict.passed() {
        fs::remove_file(&disk.path)?;
    }
    Ok(verdict)
}

/// A new folder for this run, and `latest` pointing to it.
fn new_run() -> Result<PathBuf> {
    let root = paths::target().join("e2e");
    fs::create_dir_all(&root)?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let name = format!("{seconds}-{}", std::process::id());
    fs::create_dir(root.join(&name))?;
    let latest = root.join("latest");
    let _ = fs::remove_file(&latest);
    std::os::unix::fs::symlink(&name, &latest).context("Cannot point target/e2e/latest to this run")?;
    Ok(root.join(name))
}

fn require_memory() -> Result<()> {
    const NEEDED_MIB: u64 = 6 << 10;
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let mib = kib.context("/proc/meminfo states no MemAvailable")? >> 10;
    if mib < NEEDED_MIB {
        bail!(CannotRun(format!("{NEEDED_MIB} MiB of memory are needed, {mib} MiB are available")));
    }
    Ok(())
}
