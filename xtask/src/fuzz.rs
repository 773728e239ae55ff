//! Runs the targets of `engine/fuzz/` with libFuzzer and AddressSanitizer.
//!
//! The compiler of a stable toolchain can instrument code for both; only the option of the sanitizer has no stable name
//! yet. libFuzzer itself is compiled by its crate.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::builder::PossibleValuesParser;

use crate::listener;
use vfio_fast_assets::cache::remove_dir;
use vfio_fast_assets::image::TARGET;
use vfio_fast_assets::progress::{run_logged, step};
use vfio_fast_assets::{once, paths};

/// Arguments of `fuzz`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Run only these targets
    #[arg(value_name = "TARGET", value_parser = PossibleValuesParser::new(names()))]
    targets: Vec<String>,
    /// How long to run each target
    #[arg(long, value_name = "N", default_value_t = 15)]
    minutes: u64,
}

struct Target {
    name: &'static str,
    /// Maximum length of an input: longer ones have more operations than the target executes.
    max_bytes: u32,
    /// How many inputs the check tries.
    runs: u32,
}

const TARGETS: [Target; 3] = [
    Target { name: "engine", max_bytes: 512, runs: 5_000 },
    Target { name: "c_interface", max_bytes: 768, runs: 8_000 },
    Target { name: "parsers", max_bytes: 1024, runs: 40_000 },
];

/// QEMU's listener, which a program of its own runs.
const LISTENER: &str = "listener";

/// A target with a deliberate bug behind a comparison, and the report it must cause.
const PLANTED: Target = Target { name: "planted", max_bytes: 64, runs: 1_000_000 };
const REPORT: &str = "AddressSanitizer: heap-buffer-overflow";

/// What the check depends on besides the toolchain.
const INPUTS: &[&str] = &["Cargo.lock", "engine", "ffi/Cargo.toml", "ffi/src", "xtask/src/fuzz.rs"];

const FLAGS: &[&str] = &[
    "--cfg=vfio_fast_fuzzing",
    "-Zsanitizer=address",
    // Which code an input reaches, and what it is compared with there.
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

fn names() -> impl Iterator<Item = &'static str> {
    TARGETS.iter().map(|target| target.name).chain([LISTENER])
}

/// Runs the targets for some time each. What they learn is kept for the next time.
pub fn run(args: &Args) -> Result<()> {
    let is_chosen = |name: &str| args.targets.is_empty() || args.targets.iter().any(|chosen| chosen == name);
    if TARGETS.iter().any(|target| is_chosen(target.name)) {
        run_engine(args.minutes, is_chosen)?;
    }
    if is_chosen(LISTENER) {
        listener::fuzz(args.minutes)?;
    }
    Ok(())
}

fn run_engine(minutes: u64, is_chosen: impl Fn(&str) -> bool) -> Result<()> {
    let log = paths::target().join("fuzz/build.log");
    let programs = step("Build the fuzz targets", &log, build)?;
    for target in TARGETS.iter().filter(|target| is_chosen(target.name)) {
        let log = paths::target().join("fuzz").join(format!("{}.log", target.name));
        let learned = paths::target().join("fuzz/corpus").join(target.name);
        fs::create_dir_all(&learned)?;
        step(&format!("Fuzz {}", target.name), &log, |log| {
            let mut fuzzer = fuzzer(&programs, target, &learned)?;
            run_logged(fuzzer.arg(format!("-max_total_time={}", minutes * 60)), log)
        })?;
        println!("{}", sum(&fs::read_to_string(&log)?)?);
    }
    Ok(())
}

/// Runs the check unless it has passed with these sources and this toolchain.
pub fn check_once(log: &Path) -> Result<()> {
    once::unless_passed("fuzzing", INPUTS, &[&once::compiler()?], || check(log))
}

/// Fails unless the deliberate bug, and no other, is found within a number of inputs.
fn check(log: &Path) -> Result<()> {
    let programs = build(log)?;
    let scratch = paths::target().join("fuzz/checked");
    let run = |target: &Target| {
        remove_dir(&scratch)?;
        fs::create_dir_all(&scratch)?;
        // The same inputs each time, as far as threads permit.
        let mut fuzzer = fuzzer(&programs, target, &scratch)?;
        run_logged(fuzzer.arg("-seed=1").arg(format!("-runs={}", target.runs)), log)
    };
    let failed = run(&PLANTED).is_err();
    let reported = fs::read_to_string(log)?.contains(REPORT);
    ensure!(failed && reported, "the fuzzer does not find the deliberate bug");
    TARGETS.iter().try_for_each(run)
}

/// Builds the targets, and returns the folder that they are in.
fn build(log: &Path) -> Result<PathBuf> {
    let target = paths::target().join("fuzz");
    let mut build = Command::new(paths::cargo());
    build
        .current_dir(paths::root())
        .args([
            "build",
            "--locked",
            "--package",
            "vfio-fast-fuzz",
            "--bins",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&target)
        .env("CARGO_TERM_COLOR", "never")
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        // Optimizing the crates of others takes longer than it saves.
        .args(["--config", "profile.dev.package.\"*\".opt-level=0"])
        .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only")
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"))
        // Sanitizers are not a stable option yet.
        .env("RUSTC_BOOTSTRAP", "1");
    run_logged(&mut build, log)?;
    Ok(target.join(TARGET).join("debug"))
}

/// A target, which begins with the inputs of the repository and writes new ones to `learned`.
fn fuzzer(programs: &Path, target: &Target, learned: &Path) -> Result<Command> {
    let found = paths::target().join("fuzz/found");
    fs::create_dir_all(&found).with_context(|| format!("Cannot create {}", found.display()))?;
    let mut fuzzer = Command::new(programs.join(target.name));
    fuzzer.current_dir(paths::root()).env_remove("ASAN_OPTIONS").arg(learned);
    let corpus = paths::root().join("engine/fuzz/corpus").join(target.name);
    if corpus.exists() {
        fuzzer.arg(corpus);
    }
    // Of any length from the beginning: a few operations find little.
    fuzzer.arg("-len_control=0").arg(format!("-max_len={}", target.max_bytes));
    // An input that takes so many seconds is a bug as well.
    fuzzer.args(["-timeout=60", "-print_final_stats=1"]);
    fuzzer.arg(format!("-artifact_prefix={}/{}-", found.display(), target.name));
    Ok(fuzzer)
}

/// What libFuzzer's last line says: inputs tried, places reached in the code, inputs that are worth keeping.
fn sum(log: &str) -> Result<String> {
    let line = log.lines().rev().find(|line| line.contains(" cov: ")).context("the log has no result")?;
    let mut words = line.split_whitespace();
    let inputs = words.next().unwrap_or_default().trim_start_matches('#').to_owned();
    let words: Vec<&str> = words.collect();
    let value = |name: &str| words.windows(2).find(|two| two[0] == name).map_or("?", |two| two[1]);
    Ok(format!("{inputs} inputs, {} places reached, corpus {}", value("cov:"), value("corp:")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_read() {
        let log = "INFO: x\n#2\tINITED cov: 5 ft: 6 corp: 1/1b exec/s: 0 rss: 40Mb\n\
                   #87470\tDONE   cov: 707 ft: 2512 corp: 612/13Kb lim: 133 exec/s: 7951 rss: 411Mb\n###### End of recommended dictionary. ######\n";
        assert_eq!(sum(log).unwrap(), "87470 inputs, 707 places reached, corpus 612/13Kb");
        assert!(sum("").is_err());
    }
}
