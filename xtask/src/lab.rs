//! Verbs implemented as separate programs: they need packages that no other verb needs, or ship. They are compiled
//! only when used.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use vfio_fast_assets::paths;

/// Arguments passed to the program.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Arguments of the program; see its `--help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Compiles the program and replaces this process with it, so that it receives signals directly.
pub fn become_program(package: &str, args: &Args) -> Result<()> {
    let error = command(package).args(&args.args).exec();
    Err(error).context("Cannot start cargo")
}

/// The command that compiles and runs such a program.
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
