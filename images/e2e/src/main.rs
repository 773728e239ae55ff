//! `cargo xtask e2e`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    vfio_fast_assets::outcome::exit_code(vfio_fast_e2e::run(&vfio_fast_e2e::Args::parse()))
}
