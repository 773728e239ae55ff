//! Runs tests under Miri, which interprets the code and reports undefined behaviour: the floors without system calls, and
//! the handling of a C program's pointers.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use vfio_fast_assets::outcome::CannotRun;
use vfio_fast_assets::paths;
use vfio_fast_assets::progress::run_logged;

/// Packages, and the modules of their tests. Others call the kernel, which Miri does not have.
const TESTS: [(&str, &[&str]); 2] = [
    ("vfio-fast-engine", &["addr::", "region::", "limits::", "error::", "reconcile::"]),
    ("vfio-fast", &["array::", "sized::"]),
];

pub fn check(log: &Path) -> Result<()> {
    let cargo = || {
        let mut command = Command::new("cargo");
        command.current_dir(paths::root()).args(["+nightly", "miri"]);
        command
    };
    if run_logged(cargo().arg("--version"), log).is_err() {
        let what = "Miri is not installed: rustup component add --toolchain nightly miri rust-src";
        return Err(CannotRun(what.into()).into());
    }
    for (package, modules) in TESTS {
        let mut tests = cargo();
        tests.args(["test", "--locked", "--package", package, "--lib", "--target-dir"]);
        tests.arg(paths::target().join("miri")).env("CARGO_TERM_COLOR", "never");
        // proptest asks for the working directory.
        tests.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", "4");
        // It takes Miri hours.
        tests.arg("--").args(modules).args(["--skip", "backlog::"]);
        run_logged(&mut tests, log)?;
    }
    Ok(())
}
