//! Builds, tests and checks vfio-fast: `cargo xtask --help`.

mod asan;
mod browser;
mod crates;
mod debian_packages;
mod dependencies;
mod dist;
mod documents;
mod exports;
mod fuzz;
mod header;
mod install;
mod interleavings;
mod lab;
mod listener;
mod machine;
mod miri;
mod oldest_rust;
mod other_targets;
mod pages;
mod qemu;
mod qemu_tests;
mod reproducible;
mod rpm_packages;
mod sanitizer;
mod setup;
mod test;
mod tidy;
mod tsan;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vfio_fast_assets::{interrupt, outcome};

/// Builds, tests and checks vfio-fast.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install packages and download sources ahead of time
    Setup(setup::Args),
    /// Say whether this host is ready for VFIO passthrough
    #[command(disable_help_flag = true)]
    Doctor(lab::Args),
    /// Write the C header, or check it
    Header(header::Args),
    /// Write the man pages and shell completions, or check them
    Pages(pages::Args),
    /// Install the library with its header and pkg-config file, the programs, and their manual pages
    Install(install::Args),
    /// Make the release archive
    Dist(dist::Args),
    /// Patch and build QEMU
    #[command(subcommand)]
    Qemu(qemu::Args),
    /// Run every check
    Test(test::Args),
    /// Look for inputs that break the engine, the C interface and the parsers
    Fuzz(fuzz::Args),
    /// Run the nested machines and compare stock QEMU with vfio-fast
    #[command(disable_help_flag = true)]
    E2e(lab::Args),
    /// Measure the speed of mapping on this machine
    #[command(disable_help_flag = true)]
    Bench(lab::Args),
}

fn main() -> ExitCode {
    let verb = Cli::parse().verb;
    outcome::exit_code(interrupt::handle_signals().and_then(|()| match verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Doctor(args) => lab::become_program("vfio-fast-doctor", &args),
        Verb::Header(args) => header::run(&args),
        Verb::Pages(args) => pages::run(&args),
        Verb::Install(args) => install::run(&args),
        Verb::Dist(args) => dist::run(&args),
        Verb::Qemu(args) => qemu::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::E2e(args) => lab::become_program("vfio-fast-e2e", &args),
        Verb::Bench(args) => lab::become_program("vfio-fast-bench", &args),
    }))
}
