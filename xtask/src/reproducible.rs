//! Builds the library in two folders with names of different lengths: both files must be the same. A distribution, or
//! whoever does not trust it, can then build what it ships once more, and compare.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use vfio_fast_assets::cache::remove_dir;
use vfio_fast_assets::progress::run_logged;
use vfio_fast_assets::{paths, tree};

const FOLDERS: [&str; 2] = ["one", "a-folder-with-a-longer-name"];
const LIBRARY: &str = "release/libvfio_fast.so";

pub fn check(log: &Path) -> Result<()> {
    let folder = paths::target().join("reproducible");
    remove_dir(&folder)?;
    let [one, other] = FOLDERS.map(|name| built(&folder.join(name), log));
    let (one, other) = (one?, other?);
    if let Some(at) = one.iter().zip(&other).position(|(a, b)| a != b) {
        bail!("the builds in {} differ at {at:#x} of the library", folder.display());
    }
    ensure!(one.len() == other.len(), "one build has {} bytes, the other {}", one.len(), other.len());
    // The folder above both is the same, so it would be no difference.
    let above = folder.to_string_lossy();
    ensure!(!contains(&one, above.as_bytes()), "the library contains the path of its build, {above}");
    Ok(())
}

/// The library, built of a copy of the tree in that folder with the flags of Debian's rules.
fn built(folder: &Path, log: &Path) -> Result<Vec<u8>> {
    let copy = folder.join("tree");
    tree::copy_to(&copy)?;
    let mut cargo = Command::new(paths::cargo());
    cargo.current_dir(&copy).args(["build", "--release", "--locked", "--package", "vfio-fast"]);
    cargo.arg("--target-dir").arg(folder.join("target")).env("CARGO_TERM_COLOR", "never");
    cargo.env("RUSTFLAGS", format!("--remap-path-prefix={}=/usr/src/vfio-fast", copy.display()));
    run_logged(&mut cargo, log)?;
    let library = folder.join("target").join(LIBRARY);
    fs::read(&library).with_context(|| format!("Cannot read {}", library.display()))
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found() {
        assert!(contains(b"a/b/c", b"/b/") && !contains(b"a/b/c", b"/d") && !contains(b"", b"/"));
    }
}
