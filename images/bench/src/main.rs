//! `cargo xtask bench`: measures the engine on this machine, and reports the results as a table, as JSON and as
//! plots.

mod calls;
mod criterion;
mod figure;
mod host_settings;
mod mapping;
mod nested;
mod page;
mod plot;
mod summary;
mod table;
mod targets;
mod vm;

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use clap::Parser;
use summary::Summary;
use table::Section;
use targets::Target;
use vfio_fast_assets::interrupt;
use vfio_fast_assets::outcome::{self, CannotRun, UNAVAILABLE};
use vfio_fast_assets::paths;
use vfio_fast_assets::progress::{run_logged, step};
use vfio_fast_protocol::bench::calls::Driver;
use vfio_fast_protocol::job::Container;

/// Measures the speed of mapping on this machine.
#[derive(clap::Parser, Clone, Debug)]
#[command(bin_name = "cargo xtask bench")]
struct Args {
    /// Pins of this machine's memory, without VFIO [default, unless another part is asked for]
    #[arg(long)]
    native: bool,
    /// Starts of a guest in the nested machine, with real VFIO
    #[arg(long)]
    vm: bool,
    /// The same through iommufd, on the newest kernel
    #[arg(long)]
    vm_iommufd: bool,
    /// Maps and unmaps of memory in the nested machine, through type1 on two kernels
    #[arg(long)]
    type1: bool,
    /// Maps and unmaps of memory in the nested machine, through its iommufd
    #[arg(long)]
    iommufd: bool,
    /// Arrays of pages, and a guest of 1 TiB unmapped in few and in many calls, in the nested machine
    #[arg(long)]
    calls: bool,
    /// One small guest, few rounds: to see that it works, not to quote
    #[arg(long)]
    quick: bool,
    /// Guest sizes in GiB [default: 1,2,4,8,16, as far as memory allows; with --vm and --vm-iommufd 1,2,4; with --type1 and --iommufd 2]
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<f64>,
    /// Kinds of memory of the native part and of the guests [default: all]
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<String>,
    /// Rounds per case [default: 5; with --quick 3, or 1 in the nested machine]
    #[arg(long)]
    rounds: Option<u32>,
    /// Write the results there too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Allow shmem huge pages and hugetlb pages while measuring, then put the host's settings back (needs root)
    #[arg(long)]
    host_settings: bool,
}

/// The results of a run, written to `results.json`.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// The native part.
    summary: Option<Summary>,
    /// The targets that the native part can judge.
    targets: Vec<Target>,
    /// The parts with real VFIO, one for each container.
    vm: Vec<vm::Summary>,
    /// The parts with type1 and with iommufd, one for each kernel.
    mapping: Vec<mapping::Summary>,
    /// The part with many calls.
    calls: Option<calls::Summary>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    outcome::exit_code(interrupt::handle_signals().and_then(|()| run(&args)))
}

fn run(args: &Args) -> Result<()> {
    let starts = args.vm || args.vm_iommufd;
    let measures_native = args.native || !(starts || args.type1 || args.iommufd || args.calls);
    ensure!(measures_native || !args.host_settings, "--host-settings changes nothing in the nested machine");
    ensure!(
        measures_native || starts || args.kinds.is_empty(),
        "--kinds is for --native, --vm and --vm-iommufd"
    );
    // Check the memory before the builds, which take long.
    let starts = [(args.vm, Container::Type1), (args.vm_iommufd, Container::Iommufd)];
    let starts = starts.into_iter().filter(|(given, _)| *given).map(|(_, container)| container);
    let starts = starts.map(|on| vm::Wanted::new(on, &vm_sizes(args), &args.kinds, vm_rounds(args)));
    let starts = starts.collect::<Result<Vec<_>>>()?;
    let drivers = [(args.type1, Driver::Type1), (args.iommufd, Driver::Iommufd)];
    let maps = drivers.into_iter().filter(|(given, _)| *given);
    let maps = maps.map(|(_, driver)| mapping::Wanted::new(driver, &mapping_sizes(args), vm_rounds(args)));
    let maps = maps.collect::<Result<Vec<_>>>()?;
    let calls = args.calls.then(|| calls::Wanted::new(args.quick, vm_rounds(args))).transpose()?;
    let folder = paths::new_run("bench")?;
    let mut report = Report::default();
    if measures_native {
        let mut summary = measure_native(args, &folder)?;
        summary.command = command_line(args);
        report.targets = targets::judge(&summary);
        report.summary = Some(summary);
    }
    let mut outcome = Ok(());
    for wanted in starts {
        if outcome.is_err() {
            break;
        }
        outcome = vm::run(&wanted, &folder).and_then(|(mut summary, counted)| {
            summary.about.command = command_line(args);
            report.vm.push(summary);
            counted
        });
    }
    for wanted in maps {
        if outcome.is_err() {
            break;
        }
        outcome = mapping::run(&wanted, &folder).and_then(|(mut summaries, counted)| {
            summaries.iter_mut().for_each(|summary| summary.about.command = command_line(args));
            report.mapping.extend(summaries);
            counted
        });
    }
    if let Some(wanted) = calls.filter(|_| outcome.is_ok()) {
        outcome = calls::run(&wanted, &folder).and_then(|(mut summary, counted)| {
            summary.about.command = command_line(args);
            report.calls = Some(summary);
            counted
        });
    }
    // Show what was measured before a failure.
    let nested = !report.vm.is_empty() || report.calls.is_some() || !report.mapping.is_empty();
    if report.summary.is_some() || nested {
        show(args, &report, &folder)?;
    }
    outcome
}

fn measure_native(args: &Args, folder: &Path) -> Result<Summary> {
    let settings = args.host_settings.then(host_settings::allow_huge_pages).transpose()?;
    let lines = folder.join("native.jsonl");
    let measured =
        step("Measure on real memory", &folder.join("native.log"), |log| native(args, &lines, log));
    drop(settings);
    measured?;
    let criterion = folder.join("criterion");
    let pure = step("Measure the pure part", &folder.join("pure.log"), |log| {
        run_logged(&mut pure_command(args.quick, &criterion), log)
    });
    pure?;
    let mut summary = Summary::read(&lines)?;
    summary.pure = criterion::read(&criterion)?;
    Ok(summary)
}

fn show(args: &Args, report: &Report, folder: &Path) -> Result<()> {
    let results = serde_json::to_string_pretty(report)? + "\n";
    fs::write(folder.join("results.json"), &results)?;
    if let Some(path) = &args.json {
        fs::write(path, &results).with_context(|| format!("Cannot write {}", path.display()))?;
    }
    let native = report.summary.as_ref().map(|summary| table::section(summary, &report.targets));
    let vm: Vec<Section> = report.vm.iter().map(vm::section).collect();
    let mapping: Vec<Section> = report.mapping.iter().map(mapping::section).collect();
    let calls = report.calls.as_ref().map(calls::section);
    let figure = figure::draw(report.summary.as_ref().zip(native.as_ref()), |canvas, mut y| {
        for (summary, section) in report.vm.iter().zip(&vm) {
            y = vm::draw(canvas, y, summary, section);
        }
        for (summary, section) in report.mapping.iter().zip(&mapping) {
            y = figure::draw_mapping(canvas, y, &summary.measured, section);
        }
        y
    });
    let sections: Vec<Section> = native.into_iter().chain(vm).chain(mapping).chain(calls).collect();
    fs::write(folder.join("bench.svg"), &figure)?;
    fs::write(folder.join("bench.html"), page::html(&sections, &figure))?;
    fs::write(folder.join("bench.md"), page::markdown(&sections))?;
    plot::write_png(&figure, &folder.join("bench.png"))?;
    print!("{}", table::text(&sections));
    println!("{}", folder.join("bench.html").display());
    Ok(())
}

fn native(args: &Args, lines: &Path, log: &Path) -> Result<()> {
    let mut command = Command::new(paths::cargo());
    command.current_dir(paths::root()).env("CARGO_TERM_COLOR", "never");
    command.args(["run", "--release", "--locked", "--package", "vfio-fast-measure", "--bin", "native", "--"]);
    let sizes = if args.quick && args.sizes.is_empty() { "0.5".to_owned() } else { listed(&args.sizes) };
    if !sizes.is_empty() {
        command.args(["--sizes", &sizes]);
    }
    if !args.kinds.is_empty() {
        command.args(["--kinds", &args.kinds.join(",")]);
    }
    command.args(["--rounds", &rounds(args).to_string()]);
    command.stdin(Stdio::null()).stdout(File::create(lines)?);
    command.stderr(OpenOptions::new().append(true).open(log)?);
    let (mut child, _cleanup) = interrupt::spawn(&mut command).context("Cannot start cargo")?;
    let status = child.wait()?;
    if status.code() == Some(UNAVAILABLE.into()) {
        bail!(CannotRun("The native bench cannot run on this machine".into()));
    }
    ensure!(status.success(), "The native bench ended with {status}");
    Ok(())
}

fn listed(sizes: &[f64]) -> String {
    sizes.iter().map(f64::to_string).collect::<Vec<_>>().join(",")
}

fn rounds(args: &Args) -> u32 {
    args.rounds.unwrap_or(if args.quick { 3 } else { 5 })
}

fn vm_sizes(args: &Args) -> Vec<f64> {
    match (args.sizes.is_empty(), args.quick) {
        (false, _) => args.sizes.clone(),
        (true, true) => vec![1.0],
        (true, false) => vec![1.0, 2.0, 4.0],
    }
}

fn mapping_sizes(args: &Args) -> Vec<f64> {
    match (args.sizes.is_empty(), args.quick) {
        (false, _) => args.sizes.clone(),
        (true, true) => vec![0.5],
        (true, false) => vec![2.0],
    }
}

/// The guest sizes in MiB, sorted and without duplicates.
fn mebibytes(sizes: &[f64]) -> Vec<u64> {
    let mut sizes: Vec<u64> = sizes.iter().map(|gib| (gib * 1024.0) as u64 & !1).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

fn vm_rounds(args: &Args) -> u32 {
    args.rounds.unwrap_or(if args.quick { 1 } else { 5 })
}

fn pure_command(quick: bool, folder: &Path) -> Command {
    let mut command = Command::new(paths::cargo());
    command.current_dir(paths::root()).env("CARGO_TERM_COLOR", "never");
    command.args(["bench", "--locked", "--package", "vfio-fast-engine", "--bench", "pure", "--", "--noplot"]);
    command.args(quick.then_some("--quick")).env("CRITERION_HOME", folder);
    command
}

/// The command line that repeats this run.
fn command_line(args: &Args) -> String {
    let mut words = vec!["cargo xtask bench".to_owned()];
    for (given, word) in [
        (args.native, "--native"),
        (args.vm, "--vm"),
        (args.vm_iommufd, "--vm-iommufd"),
        (args.type1, "--type1"),
        (args.iommufd, "--iommufd"),
        (args.calls, "--calls"),
        (args.quick, "--quick"),
    ] {
        words.extend(given.then(|| word.to_owned()));
    }
    if !args.sizes.is_empty() {
        words.push(format!("--sizes {}", listed(&args.sizes)));
    }
    if !args.kinds.is_empty() {
        words.push(format!("--kinds {}", args.kinds.join(",")));
    }
    words.extend(args.rounds.map(|rounds| format!("--rounds {rounds}")));
    if args.host_settings {
        words.push("--host-settings".to_owned());
    }
    words.join(" ")
}
