//! `cargo xtask e2e`.

use std::process::ExitCode;

use clap::Parser;
use vfio_fast_assets::{interrupt, outcome};
use vfio_fast_e2e::Args;

fn main() -> ExitCode {
    let args = Args::parse();
    outcome::exit_code(interrupt::handle_signals().and_then(|()| vfio_fast_e2e::run(&args)))
}
