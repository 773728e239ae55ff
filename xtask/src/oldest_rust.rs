//! Builds what ships with the oldest compiler that it has to build with: Debian stable's.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use vfio_fast_assets::cache::Cache;
use vfio_fast_assets::progress::run_logged;
use vfio_fast_assets::{once, packages, paths, rustc};

const INPUTS: &[&str] = &["Cargo.lock", "Cargo.toml", "engine", "ffi", "xtask/src/oldest_rust.rs"];

/// Runs the check unless it has passed with these sources and this compiler.
pub fn check_once(log: &Path) -> Result<()> {
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    let rustc = rustc::of_debian_stable(&cache)?;
    once::unless_passed("oldest-rust", INPUTS, &[&rustc.display().to_string()], || {
        let mut build = Command::new(paths::cargo());
        build.current_dir(paths::root()).env("CARGO_TERM_COLOR", "never").env("RUSTC", &rustc);
        build.args(["build", "--locked", "--target-dir"]).arg(paths::target().join("oldest-rust"));
        // Without more arguments: the default members of the workspace, which are what is installed.
        run_logged(&mut build, log)?;
        build.args(["--package", "vfio-fast-dma", "--features", "sim"]);
        run_logged(&mut build, log)
    })
}
