//! Builds, tests and proves vfio-fast: `cargo xtask --help`.

#![allow(dead_code, reason = "the verbs that use these modules follow")]

mod cache;
mod debian;
mod e2e;
mod outcome;
mod packages;
mod paths;
mod progress;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, tests and proves vfio-fast.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the nested machines and compare stock QEMU with vfio-fast
    E2e(e2e::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::E2e(args) => e2e::run(&args),
    };
    outcome::exit_code(result)
}
