//! Runs the tests under AddressSanitizer, which looks for leaks as well.
//!
//! The compiler of a stable toolchain can instrument code for it; only the option has no stable name yet. The standard
//! library is not instrumented.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::sanitizer;
use vfio_fast_assets::once;
use vfio_fast_assets::paths;
use vfio_fast_assets::progress::run_logged;

/// Tests of the engine that make its allocations or its system calls fail, and with them the sanitizer's own. The
/// interleavings have a build of their own.
const LEFT_OUT: &[&str] = &["fail_allocations", "fail_system_calls", "interleavings", PLANTED];
/// Faults on purpose, and the report of each.
const PLANTED: &str = "planted";
const REPORTS: [(&str, &str); 2] = [
    ("a_planted_leak_is_reported", "LeakSanitizer: detected memory leaks"),
    ("a_planted_overrun_is_reported", "AddressSanitizer: heap-buffer-overflow"),
];

/// Huge allocations fail as they do without the sanitizer, and local variables stay on the stack.
const OPTIONS: &str = "allocator_may_return_null=1:detect_stack_use_after_return=0";

/// What the check depends on besides the toolchain.
const INPUTS: &[&str] =
    &["Cargo.lock", "Cargo.toml", "engine", "ffi", "xtask/src/asan", "xtask/src/sanitizer.rs"];

/// Runs the check unless it has passed with these sources and this toolchain.
pub fn check_once(log: &Path) -> Result<()> {
    once::unless_passed("AddressSanitizer", INPUTS, &[&once::compiler()?], || check(log))
}

/// Fails unless the deliberate faults, and no others, are reported.
fn check(log: &Path) -> Result<()> {
    for (test, report) in REPORTS {
        let failed =
            run_logged(tests("vfio-fast-engine").args(["--test", PLANTED, "--", "--ignored", test]), log);
        let reported = fs::read_to_string(log)?.contains(report);
        ensure!(failed.is_err() && reported, "{test}: there is no report");
    }
    run_logged(tests("vfio-fast-engine").arg("--lib").args(engine_tests()?), log)?;
    run_logged(tests("vfio-fast-dma").args(["--lib", "--tests"]), log)?;
    // Programs that preload a library, or link it, would have to be instrumented as well.
    let mut boundary = tests("vfio-fast");
    boundary.args(["--package", "vfio-fast-doctor", "--package", "vfio-fast-preload", "--lib", "--bins"]);
    run_logged(&mut boundary, log)
}

/// `--test` and the name of each of the engine's tests.
fn engine_tests() -> Result<Vec<String>> {
    let folder = paths::root().join("engine/tests");
    let files = fs::read_dir(&folder).with_context(|| format!("Cannot read {}", folder.display()))?;
    let mut arguments = Vec::new();
    for file in files {
        let file = file?.path();
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if !LEFT_OUT.contains(&name.as_str()) {
            arguments.extend(["--test".to_owned(), name]);
        }
    }
    Ok(arguments)
}

/// Runs tests of a package, compiled for the sanitizer.
fn tests(package: &str) -> Command {
    let mut command = sanitizer::tests(package, "address", &[]);
    let suppressions = paths::root().join("xtask/src/asan/leaks.txt");
    command.env("ASAN_OPTIONS", OPTIONS);
    command.env("LSAN_OPTIONS", format!("suppressions={}", suppressions.display()));
    command
}
