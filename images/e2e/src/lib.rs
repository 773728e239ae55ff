//! The nested test machines, which compare stock QEMU and vfio-fast on real kernels.
//!
//! This machine (L0) emulates a host with an IOMMU (L1). L1 runs the QEMU under test, and its guest (L2) does DMA
//! through a passthrough device. All evidence comes from witnesses outside the library.

mod accel;
mod arm64;
mod bar;
mod breaks;
mod disk;
mod iommu_trace;
mod judge;
mod kvm_probe;
mod l0;
mod parts;
mod phase;
mod records;
mod report;
mod runs;
mod scenario;
mod splat;
mod table;

pub use accel::Accel;
pub use judge::Verdict;
pub use kvm_probe::choose;
pub use l0::{STEPS, trace};
pub use parts::Parts;
pub use phase::{Phase, Phases};
pub use records::Check;
pub use runs::{Runs, require_memory};
pub use vfio_fast_protocol::spec::ScenarioSpec;

use std::collections::BTreeSet;
use std::process::Command;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::builder::PossibleValuesParser;
use vfio_fast_assets::cache::Cache;
use vfio_fast_assets::{paths, progress};
use vfio_fast_protocol::{core_runs, scenarios};

/// Boots the nested machines and compares stock QEMU with vfio-fast.
///
/// Without arguments: the main scenario on one host.
#[derive(clap::Parser, Clone, Debug, Default)]
#[command(bin_name = "cargo xtask e2e")]
pub struct Args {
    /// Print the names of all scenarios and stop
    #[arg(long)]
    list: bool,
    /// Run every scenario on every host
    #[arg(long, conflicts_with = "only")]
    all: bool,
    /// Run every scenario at least once, on few of its hosts and in few of its modes: what `cargo xtask test` runs
    #[arg(long, conflicts_with_all = ["only", "all"])]
    core: bool,
    /// Run this scenario, on all its hosts or (see --list) on one, or one of its runs; can be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// How long the scenario `soak` goes on, in minutes; 2 by default
    #[arg(long, value_name = "N")]
    soak: Option<u64>,
    /// Compile patched QEMU with AddressSanitizer and UndefinedBehaviorSanitizer: the first finding ends it
    #[arg(long)]
    sanitized: bool,
    /// Put this fault into a copy of the tree, and expect the check that is named for it to fail; can be given several
    /// times
    #[arg(
        long = "break",
        value_name = "NAME",
        conflicts_with_all = ["only", "all", "core", "list", "sanitized"],
        value_parser = PossibleValuesParser::new(breaks::names())
    )]
    breaks: Vec<String>,
}

/// Runs the selected scenarios.
pub fn run(args: &Args) -> Result<()> {
    if !args.breaks.is_empty() {
        return breaks::run(&args.breaks);
    }
    let is_main = !args.all && !args.core && !args.list && args.only.is_empty();
    let mut specs = match (is_main, args.core) {
        (true, _) => vec![scenario::main()],
        (_, true) => core_runs::of(scenarios::all()),
        _ => scenario::chosen(&args.only)?,
    };
    for spec in &mut specs {
        spec.sanitized = args.sanitized;
        if let Some(soak) =
            args.soak.map(|minutes| Duration::from_secs(minutes * 60)).filter(|_| !spec.soak.is_zero())
        {
            spec.limit += soak;
            spec.soak = soak;
        }
    }
    if args.list {
        for spec in specs {
            println!("{:33} {}", spec.name(), spec.what);
        }
        return Ok(());
    }
    let start = Instant::now();
    let phases = Phases::default();
    phases.enter(Phase::Setup);
    let cache = Cache::open()?;
    let folder = paths::new_run("e2e")?;
    let parts = Parts::prepare(&cache, &folder, &specs)?;
    let accel = choose(&parts, &folder)?;
    progress::print(&format!("    L1 runs under {accel}"));

    let runs = Runs { parts: &parts, folder: &folder, accel, phases: &phases };
    let (mut verdicts, outcome) = runs.all(&specs);
    phases.enter(Phase::Check);
    judge::compare_modes(&mut verdicts)?;
    table::write_json(&folder.join("results.json"), &verdicts)?;
    table::print(&verdicts);
    let failed = verdicts.iter().filter(|v| !v.passed()).count();
    let (took, retries) = (start.elapsed(), table::retries(&verdicts));
    println!("\n{} runs, {failed} failed, {}: {}", verdicts.len(), progress::elapsed(took), folder.display());
    println!("{retries}");
    let run = report::Run { environment: environment(accel, &specs), took, retries };
    report::write(&folder, &run, &verdicts)?;
    println!("report: {}", folder.join(report::PAGE).display());
    if is_main && failed == 0 && outcome.is_ok() {
        println!(
            "This was the main scenario on one host. `cargo xtask e2e --list` names the others, `--only NAME` runs one, \
             `--core` runs each of them once or more, `--all` runs everything."
        );
    }
    if failed > 0 {
        bail!("{failed} of {} runs failed", verdicts.len());
    }
    outcome
}

/// What the results depend on besides the sources.
fn environment(accel: Accel, specs: &[ScenarioSpec]) -> Vec<(&'static str, String)> {
    let series: BTreeSet<String> = specs.iter().map(|spec| spec.qemu.to_string()).collect();
    let series: Vec<String> = series.into_iter().collect();
    let mut git = Command::new("git");
    git.current_dir(paths::root()).args(["describe", "--always", "--dirty", "--abbrev=12"]);
    let commit =
        progress::output(&mut git).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned());
    let kernel = rustix::system::uname();
    vec![
        ("commit", commit),
        ("QEMU under test", series.join(", ")),
        ("L1 runs under", accel.to_string()),
        ("kernel of this machine", kernel.release().to_string_lossy().into_owned()),
        ("CPUs", available_parallelism().map_or_else(|_| "unknown".to_owned(), |cpus| cpus.to_string())),
    ]
}
