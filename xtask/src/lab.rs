//! Verbs that are programs of their own: they need packages that no other verb needs, and are compiled only when they run.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use vfio_fast_assets::paths;

/// What the program is started with.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// See `--help` of the program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Compiles the program and continues as it, so that signals reach it directly.
pub fn become_program(package: &str, args: &Args) -> Result<()> {
    let error = command(package).args(&args.args).exec();
    Err(error).context("Cannot start cargo")
}

/// Compiles and runs a program of the lab.
pub fn command(package: &str) -> Command {
    let mut command = Command::new(paths::cargo());
    command.current_dir(paths::root()).args([
        "run",
        "--locked",
        "--package",
        package,
        "--bin",
        package,
        "--",
    ]);
    command
}
