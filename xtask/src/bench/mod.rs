//! `cargo xtask bench`: what the engine brings on this machine, as a table, as JSON and as plots.

mod bars;
mod figure;
mod knobs;
mod page;
mod plot;
mod pure;
#[path = "../../../engine/benches/native/record.rs"]
mod record;
mod summary;
mod table;

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::outcome::{CannotRun, UNAVAILABLE};
use crate::paths;
use crate::progress::{run_logged, step};
use summary::Summary;

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// One small guest, few rounds: to see that it works, not to quote
    #[arg(long)]
    quick: bool,
    /// Guest sizes in GiB [default: 1,2,4,8,16, as far as memory allows]
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<f64>,
    /// How often each case is measured [default: 5, with --quick 3]
    #[arg(long)]
    rounds: Option<u32>,
    /// Write the results there too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Allow shmem huge pages and hugetlb pages while measuring, then put the host's settings back (needs root)
    #[arg(long)]
    host_settings: bool,
}

/// Measures, then shows.
pub fn run(args: &Args) -> Result<()> {
    let folder = new_run()?;
    let settings = args.host_settings.then(knobs::allow_huge_pages).transpose()?;
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
    summary.command = command_line(args);
    summary.pure = pure::read(&criterion)?;
    let bars = bars::judge(&summary);
    let results = serde_json::to_string_pretty(&json!({ "summary": summary, "bars": bars }))? + "\n";
    fs::write(folder.join("results.json"), &results)?;
    if let Some(path) = &args.json {
        fs::write(path, &results).with_context(|| format!("Cannot write {}", path.display()))?;
    }
    let figure = figure::draw(&summary);
    fs::write(folder.join("bench.svg"), &figure)?;
    fs::write(folder.join("bench.html"), page::html(&summary, &bars, &figure))?;
    fs::write(folder.join("bench.md"), page::markdown(&summary, &bars))?;
    plot::write_png(&figure, &folder.join("bench.png"))?;
    print!("{}", table::text(&summary, &bars));
    println!("{}", folder.join("bench.html").display());
    Ok(())
}

fn native(args: &Args, lines: &Path, log: &Path) -> Result<()> {
    let mut command = Command::new(paths::cargo());
    command.current_dir(paths::root()).env("CARGO_TERM_COLOR", "never");
    command.args(["bench", "--locked", "--package", "vfio-fast-engine", "--bench", "native", "--"]);
    let sizes = if args.quick && args.sizes.is_empty() { "0.5".to_owned() } else { listed(&args.sizes) };
    if !sizes.is_empty() {
        command.args(["--sizes", &sizes]);
    }
    command.args(["--rounds", &rounds(args).to_string()]);
    command.stdin(Stdio::null()).stdout(File::create(lines)?);
    command.stderr(OpenOptions::new().append(true).open(log)?);
    let status = command.status().context("Cannot start cargo")?;
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

fn pure_command(quick: bool, folder: &Path) -> Command {
    let mut command = Command::new(paths::cargo());
    command.current_dir(paths::root()).env("CARGO_TERM_COLOR", "never");
    command.args(["bench", "--locked", "--package", "vfio-fast-engine", "--bench", "pure", "--", "--noplot"]);
    command.args(quick.then_some("--quick")).env("CRITERION_HOME", folder);
    command
}

/// What was typed, to be typed again.
fn command_line(args: &Args) -> String {
    let mut words = vec!["cargo xtask bench".to_owned()];
    if args.quick {
        words.push("--quick".to_owned());
    }
    if !args.sizes.is_empty() {
        words.push(format!("--sizes {}", listed(&args.sizes)));
    }
    words.extend(args.rounds.map(|rounds| format!("--rounds {rounds}")));
    if args.host_settings {
        words.push("--host-settings".to_owned());
    }
    words.join(" ")
}

/// A new folder for this run, and `latest` pointing to it.
fn new_run() -> Result<PathBuf> {
    let root = paths::target().join("bench");
    fs::create_dir_all(&root)?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let name = format!("{seconds}-{}", std::process::id());
    fs::create_dir(root.join(&name))?;
    let latest = root.join("latest");
    let _ = fs::remove_file(&latest);
    std::os::unix::fs::symlink(&name, &latest).context("Cannot point target/bench/latest to this run")?;
    Ok(root.join(name))
}
