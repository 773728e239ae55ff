//! Runs tests of the engine compiled for another C library, and for another processor, which is emulated.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use vfio_fast_assets::progress::run_logged;
use vfio_fast_assets::{once, paths, target};

const INPUTS: &[&str] = &["Cargo.lock", "Cargo.toml", "engine", "ffi", "xtask/src/other_targets.rs"];

/// A target, and how its tests are built and run.
struct Target {
    triple: &'static str,
    /// Variables of Cargo and of the crates that build C code.
    variables: &'static [(&'static str, &'static str)],
    /// Which tests.
    tests: &'static [&'static str],
}

const TARGETS: &[Target] = &[
    // What the engine requests of the kernel by way of the C library.
    Target {
        triple: "x86_64-unknown-linux-musl",
        // The benches, which are not run, need this to compile.
        variables: &[("CC_x86_64_unknown_linux_musl", "gcc")],
        tests: &[
            "--lib",
            "--test=discard",
            "--test=fault_in",
            "--test=native",
            "--test=objects",
            "--test=placement",
            "--test=refusals",
        ],
    },
    // What the processor orders and aligns in another way. The emulator refuses many system calls, so these are tests
    // on the model.
    Target {
        triple: "aarch64-unknown-linux-gnu",
        variables: &[
            ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc"),
            ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", "qemu-aarch64 -L /usr/aarch64-linux-gnu"),
            ("PROPTEST_CASES", "16"),
        ],
        tests: &[
            "--test=dirty",
            "--test=handover",
            "--test=handover_random",
            "--test=model",
            "--test=pages",
            "--test=rest",
            "--test=rollback",
            "--test=unmap",
        ],
    },
];

/// Runs the check unless it has passed with these sources and this compiler.
pub fn check_once(log: &Path) -> Result<()> {
    once::unless_passed("other-targets", INPUTS, &[&once::compiler()?], || {
        TARGETS.iter().try_for_each(|target| check(target, log).context(target.triple))
    })
}

fn check(other: &Target, log: &Path) -> Result<()> {
    target::add(other.triple, log)?;
    // No arguments for packages: the default members of the workspace are what ships.
    run_logged(cargo(other).args(["check", "--locked"]), log)?;
    let mut tests = cargo(other);
    run_logged(tests.args(["test", "--locked", "--package", "vfio-fast-engine"]).args(other.tests), log)
}

fn cargo(target: &Target) -> Command {
    let mut command = Command::new(paths::cargo());
    command
        .current_dir(paths::root())
        .env("CARGO_TERM_COLOR", "never")
        .env("CARGO_BUILD_TARGET", target.triple)
        .env("CARGO_TARGET_DIR", paths::target().join("other-targets"))
        .envs(target.variables.iter().copied());
    command
}
