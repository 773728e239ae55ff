//! The nested machines: stock QEMU and vfio-fast side by side, on real kernels.
//!
//! This machine (L0) emulates a host with an IOMMU (L1), which runs the QEMU under test, whose
//! guest (L2) moves data through a passthrough device. Everything that is judged comes from
//! witnesses outside the library.

mod accel;
mod bar;
mod disk;
mod iommu_trace;
mod judge;
mod l0;
mod phase;
mod records;
mod runs;
mod scenario;
mod splat;
mod table;

pub use accel::Accel;
pub use judge::Verdict;
pub use l0::{STEPS, trace};
pub use phase::{Phase, Phases};
pub use records::Check;
pub use runs::{Parts, Runs, require_memory};
pub use vfio_fast_protocol::spec::ScenarioSpec;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use vfio_fast_assets::cache::Cache;
use vfio_fast_assets::debian::{Debian, STABLE};
use vfio_fast_assets::image::{self, Guest};
use vfio_fast_assets::qemu::{self, Kind};
use vfio_fast_assets::{kernel, library, packages, paths, progress};
use vfio_fast_protocol::host::Kernel;
use vfio_fast_protocol::spec::Program;

/// Runs the nested machines and compares stock QEMU with vfio-fast.
#[derive(clap::Parser, Clone, Debug, Default)]
#[command(bin_name = "cargo xtask e2e")]
pub struct Args {
    /// Print the names of the scenarios and stop
    #[arg(long)]
    list: bool,
    /// Run only this scenario, on all its machines or (see --list) on one; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

/// Runs the scenarios asked for; all of them without arguments.
pub fn run(args: &Args) -> Result<()> {
    let plans = scenario::chosen(&args.only)?;
    if args.list {
        for plan in plans {
            println!("{:33} {}", plan.name(), plan.what);
        }
        return Ok(());
    }
    let start = Instant::now();
    let phases = Phases::default();
    phases.enter(Phase::Setup);
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    let run = new_run()?;
    let (parts, accel) = prepare(&cache, &run, &phases, &plans)?;

    let runs = Runs { parts: &parts, folder: &run, accel, phases: &phases };
    let (mut verdicts, outcome) = runs.all(&plans);
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
    outcome
}

/// Fetches and builds what the machines of these plans are made of, and chooses how L1 runs.
pub fn prepare(cache: &Cache, run: &Path, phases: &Phases, plans: &[ScenarioSpec]) -> Result<(Parts, Accel)> {
    let guest = Guest::prepare(cache, &Debian::open(cache, STABLE)?)?;
    let newest = plans.iter().any(|plan| plan.host.kernel == Kernel::Newest);
    let newest = newest.then(kernel::built).transpose()?.map(|kernel| guest.with_kernel(kernel));
    let emulator = qemu::built(Kind::Emulator)?;
    let reference = qemu::built(Kind::Stock)?;
    let not_built = qemu::built(Kind::Off)?;
    let patched = qemu::built(Kind::On)?;

    phases.enter(Phase::Build);
    let agent = progress::step("Build the agent", &run.join("agent.log"), image::build_agent)?;
    let witness = progress::step("Build the witness", &run.join("witness.log"), image::build_witness)?;
    let prefix = run.join("prefix");
    progress::step("Build the library", &run.join("library.log"), |log| library::into(&prefix, log))?;
    let library = prefix.join("lib").join(library::soname());
    let wants_conformance = plans.iter().any(|plan| plan.program == Program::Conformance);
    let log = run.join("conformance-build.log");
    let conformance = || progress::step("Build the conformance tests", &log, image::build_conformance);
    let conformance = wants_conformance.then(conformance).transpose()?;
    let bench = plans.iter().find_map(ScenarioSpec::bench_name).map(|name| {
        let build = |log: &Path| image::build_measure(name, log);
        progress::step("Build the engine's bench", &run.join("bench-build.log"), build)
    });
    let bench = bench.transpose()?;
    let parts = Parts {
        guest,
        newest,
        emulator,
        reference,
        patched,
        not_built,
        library,
        agent,
        witness,
        conformance,
        bench,
    };
    let accel = accel::choose(&parts, run)?;
    println!("    L1 runs under {accel}");
    Ok((parts, accel))
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
