//! `cargo xtask test`: runs every check of the repository, each with its own log and time.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::builder::PossibleValuesParser;

use crate::{
    asan, browser, crates, debian_packages, dependencies, documents, exports, fuzz, header, interleavings,
    lab, listener, miri, oldest_rust, other_targets, pages, qemu_tests, reproducible, rpm_packages, tidy,
    tsan,
};
use vfio_fast_assets::cache::Cache;
use vfio_fast_assets::outcome::{AlreadyReported, UNAVAILABLE, code_of};
use vfio_fast_assets::progress::{elapsed, run_logged, step};
use vfio_fast_assets::qemu::Kind;
use vfio_fast_assets::{interrupt, kernel, library, packages, paths, qemu};
use vfio_fast_protocol::qemu::QemuSeries;

/// Arguments of `test`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Leave out the checks that take minutes
    #[arg(long)]
    fast: bool,
    /// Run only this check, also one that a whole run leaves out; can be given several times
    #[arg(long, value_name = "CHECK", conflicts_with = "fast", value_parser = PossibleValuesParser::new(names()))]
    only: Vec<String>,
}

struct Check {
    name: &'static str,
    when: When,
    run: fn(&Path) -> Result<()>,
}

/// The runs that a check is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Always,
    /// Not with `--fast`: it takes minutes, because it builds everything in another way, or builds QEMU or a kernel.
    Whole,
    /// Only where it is named: a whole run has no time for it.
    ByName,
}

/// All checks, the cheapest first.
const CHECKS: &[Check] = &[
    fast("format", |log| {
        cargo(&["fmt", "--all", "--check"], &[], log)?;
        run_logged(&mut rustfmt_scenarios()?, log)
    }),
    fast("tidy", |_| tidy::check()),
    fast("dependencies", |_| dependencies::check()),
    fast("clippy", |log| {
        cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"], &[], log)
    }),
    fast("unit and property tests", |log| {
        cargo(&["test", "--workspace", "--exclude", "vfio-fast", "--locked"], &[], log)?;
        // Runs each measurement once, with its assertions.
        cargo(&["test", "--package", "vfio-fast-engine", "--bench", "pure", "--locked"], &[], log)?;
        // On the model of the kernel.
        cargo(&["run", "--package", "vfio-fast-dma", "--example", "guest_memory", "--locked"], &[], log)
    }),
    fast("C interface and its consumers", |log| {
        cargo(&["test", "--package", "vfio-fast", "--locked"], &[], log)
    }),
    fast("documentation", |log| {
        let strict = [("RUSTDOCFLAGS", "-D warnings".into())];
        cargo(&["doc", "--workspace", "--no-deps", "--locked"], &strict, log)
    }),
    fast("crates", crates::check),
    fast("header drift", |_| header::check()),
    fast("man pages and completions", |_| pages::check()),
    fast("exported symbols", |log| {
        library::into(&prefix(), log)?;
        exports::check(&prefix())?;
        exports::check_preload(&library::preload(log)?)
    }),
    slow("oldest Rust", oldest_rust::check_once),
    slow("musl and arm64", other_targets::check_once),
    slow("Debian packages", debian_packages::check_once),
    slow("interleavings", interleavings::check_once),
    slow("AddressSanitizer", asan::check_once),
    slow("ThreadSanitizer", tsan::check_once),
    slow("fuzzing", fuzz::check_once),
    slow("listener of QEMU", listener::check_once),
    slow("patch series applies", |_| qemu::check_series()),
    slow("QEMU builds stock, off and on", |_| {
        let built = |series, kind| qemu::built(series, kind).map(drop);
        [Kind::Stock, Kind::Off, Kind::On].into_iter().try_for_each(|kind| built(QemuSeries::USUAL, kind))?;
        QemuSeries::ALL.into_iter().try_for_each(|series| built(series, Kind::On))
    }),
    slow("every patch builds off and on", |_| qemu::check_each_patch(QemuSeries::USUAL)),
    by_name("Debian package of QEMU", debian_packages::qemu::check_once),
    by_name("RPM packages", rpm_packages::check),
    by_name("every patch of 10.2 builds", |_| qemu::check_each_patch(QemuSeries::V10_2)),
    slow("newest kernel builds", |_| kernel::built().map(drop)),
    slow("commands of the documents", documents::check_once),
    slow("e2e", |_| e2e(&["--core"])),
    by_name("whole matrix of e2e", |_| e2e(&["--all"])),
    by_name("e2e with sanitizers", |_| e2e(&["--core", "--sanitized"])),
    by_name("tests of QEMU", qemu_tests::check),
    by_name("Miri", miri::check),
    by_name("report in a browser", browser::check),
    by_name("reproducible library", reproducible::check),
];

/// `cargo fmt` does not find modules that a build script lists.
fn rustfmt_scenarios() -> Result<Command> {
    let mut command = Command::new("rustfmt");
    command.args(["--check", "--edition", "2024"]).current_dir(paths::root());
    for folder in ["images/protocol/src/scenarios", "images/agent/src/l1/scenarios"] {
        for file in fs::read_dir(paths::root().join(folder))? {
            command.arg(file?.path());
        }
    }
    Ok(command)
}

fn names() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().map(|check| check.name)
}

const fn fast(name: &'static str, run: fn(&Path) -> Result<()>) -> Check {
    Check { name, when: When::Always, run }
}

const fn slow(name: &'static str, run: fn(&Path) -> Result<()>) -> Check {
    Check { name, when: When::Whole, run }
}

const fn by_name(name: &'static str, run: fn(&Path) -> Result<()>) -> Check {
    Check { name, when: When::ByName, run }
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    /// Left out because of `--fast`.
    LeftOut,
    /// This machine cannot run the check.
    CannotRun,
}

/// Runs the checks, all of them even after a failure, and prints a summary.
pub fn run(args: &Args) -> Result<()> {
    packages::ensure(&Cache::open()?)?;
    let mut done = Vec::new();
    let chosen = |check: &&Check| {
        if args.only.is_empty() {
            check.when != When::ByName
        } else {
            args.only.iter().any(|name| name == check.name)
        }
    };
    for check in CHECKS.iter().filter(chosen) {
        let start = Instant::now();
        let verdict = if args.fast && check.when == When::Whole {
            Verdict::LeftOut
        } else {
            let log =
                paths::target().join("test").join(format!("{}.log", check.name.replace([' ', ','], "-")));
            match step(check.name, &log, check.run) {
                Ok(()) => Verdict::Passed,
                Err(error) if code_of(&error) == UNAVAILABLE => Verdict::CannotRun,
                Err(_) => Verdict::Failed,
            }
        };
        done.push((check.name, verdict, start.elapsed()));
    }
    println!("{}", table(&done));
    let (line, result) = sum_up(&done.iter().map(|(_, verdict, _)| *verdict).collect::<Vec<_>>());
    println!("{line}");
    result
}

fn table(done: &[(&str, Verdict, Duration)]) -> String {
    let mut lines = vec![format!("{:<32}{:<14}{}", "check", "result", "time")];
    for (name, verdict, time) in done {
        let (result, time) = match verdict {
            Verdict::Passed => ("passed", elapsed(*time)),
            Verdict::Failed => ("FAILED", elapsed(*time)),
            Verdict::LeftOut => ("skipped", "left out by --fast".into()),
            Verdict::CannotRun => ("skipped", "cannot run here".into()),
        };
        lines.push(format!("{name:<32}{result:<14}{time}"));
    }
    lines.join("\n")
}

/// The last line of the summary, and the result. A failed check takes precedence over one that could not run.
fn sum_up(verdicts: &[Verdict]) -> (String, Result<()>) {
    let count = |wanted: Verdict| verdicts.iter().filter(|verdict| **verdict == wanted).count();
    let (failed, stuck) = (count(Verdict::Failed), count(Verdict::CannotRun));
    let skipped = count(Verdict::LeftOut) + stuck;
    let mut line = format!("{} passed, {failed} failed", count(Verdict::Passed));
    if skipped > 0 {
        line += &format!(", {skipped} skipped");
    }
    let result = match (failed, stuck) {
        (0, 0) => Ok(()),
        (0, _) => Err(AlreadyReported(UNAVAILABLE).into()),
        _ => Err(AlreadyReported(1).into()),
    };
    (line, result)
}

/// Runs the scenarios, with their output shown.
fn e2e(arguments: &[&str]) -> Result<()> {
    let status = {
        let (mut child, _cleanup) = interrupt::spawn(lab::command("vfio-fast-e2e").args(arguments))?;
        child.wait()?
    };
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(AlreadyReported(u8::try_from(code).unwrap_or(1)).into()),
        None => bail!("e2e ended with {status}"),
    }
}

fn prefix() -> PathBuf {
    paths::target().join("test/prefix")
}

fn cargo(args: &[&str], env: &[(&str, OsString)], log: &Path) -> Result<()> {
    let mut command = Command::new(paths::cargo());
    command.current_dir(paths::root()).args(args).env("CARGO_TERM_COLOR", "never");
    command.envs(env.iter().map(|(name, value)| (name, value)));
    run_logged(&mut command, log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{CannotRun, Failed, LeftOut, Passed};

    #[test]
    fn the_last_line_counts_every_check_and_the_code_follows_it() {
        let code = |result: Result<()>| result.map_or_else(|error| code_of(&error), |()| 0);
        for (verdicts, line, wanted) in [
            (&[Passed, Passed][..], "2 passed, 0 failed", 0),
            (&[Passed, LeftOut], "1 passed, 0 failed, 1 skipped", 0),
            (&[Passed, Failed, Failed], "1 passed, 2 failed", 1),
            (&[Passed, CannotRun, LeftOut], "1 passed, 0 failed, 2 skipped", UNAVAILABLE),
            (&[Failed, CannotRun], "0 passed, 1 failed, 1 skipped", 1),
        ] {
            let (found, result) = sum_up(verdicts);
            assert_eq!((found.as_str(), code(result)), (line, wanted));
        }
    }
}
