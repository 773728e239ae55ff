//! Runs the tests of the job that maps in the background in every order of their threads that a checker finds.
//!
//! The engine is compiled with the checker's locks in place of the system's (`engine/src/sync.rs`), in a folder of its
//! own, by a flag of the compiler: as a feature, another package could switch it on for what ships.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use vfio_fast_assets::progress::run_logged;
use vfio_fast_assets::{once, paths};

const INPUTS: &[&str] = &["Cargo.lock", "engine", "xtask/src/interleavings.rs"];
const FLAGS: &str = "--cfg\u{1f}vfio_fast_interleavings";

/// Runs the check unless it has passed with this engine.
pub fn check_once(log: &Path) -> Result<()> {
    once::unless_passed("interleavings", INPUTS, &[], || {
        let mut tests = Command::new(paths::cargo());
        tests
            .current_dir(paths::root())
            .args(["test", "--locked", "--package", "vfio-fast-engine", "--test", "interleavings"])
            .arg("--target-dir")
            .arg(paths::target().join("interleavings"))
            .env("CARGO_ENCODED_RUSTFLAGS", FLAGS)
            .env("CARGO_TERM_COLOR", "never");
        run_logged(&mut tests, log)
    })
}
