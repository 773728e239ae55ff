//! Packs the crates for Rust programs as they would be published, and builds each one from its package.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::dist;
use vfio_fast_assets::cache::remove_dir;
use vfio_fast_assets::paths;
use vfio_fast_assets::progress::{output, run_logged};

/// What is published, each crate after those that it needs.
const PUBLISHED: [&str; 2] = ["vfio-fast-engine", "vfio-fast-dma"];

/// Packs a copy of the files that are in git or could be added to it: cargo packs only what is committed.
pub fn check(log: &Path) -> Result<()> {
    let folder = paths::target().join("crates");
    let tree = folder.join("tree");
    remove_dir(&tree)?;
    let mut git = Command::new("git");
    git.current_dir(paths::root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    for name in output(&mut git)?.split_terminator('\0') {
        let (from, to) = (paths::root().join(name), tree.join(name));
        // A file that was removed without a commit.
        if from.symlink_metadata().is_err() {
            continue;
        }
        dist::copy(&from, &to)?;
    }
    let mut cargo = Command::new(paths::cargo());
    cargo.current_dir(&tree).env("CARGO_TERM_COLOR", "never").args(["package", "--locked", "--all-features"]);
    cargo.args(PUBLISHED.iter().flat_map(|name| ["--package", name]));
    cargo.arg("--target-dir").arg(folder.join("target"));
    run_logged(&mut cargo, log)
}
