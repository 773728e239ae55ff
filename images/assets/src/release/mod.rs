//! The release archive: what ships, with the sources of the crates that it needs.
//!
//! The archive builds without network and without xtask. Two runs at the same commit make the same bytes.

mod debian;
pub mod manifest;
mod vendor;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use hmac_sha256::Hash;

use crate::cache::remove_dir;
use crate::progress::{output, run_logged};
use crate::{paths, tree};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is in the archive, as git's patterns. The tests that are left out need xtask, or crates that do not ship.
pub const CONTENTS: &[&str] = &[
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-GPL",
    "README.md",
    "docs",
    "engine/Cargo.toml",
    "engine/src",
    "ffi",
    ":!ffi/tests/c_consumers.rs",
    ":!ffi/tests/toolchain",
    "include",
    "packaging",
    "qemu-patches",
];

/// The name of the archive without its suffix, and of the folder in it.
pub fn name() -> String {
    format!("vfio-fast-{VERSION}")
}

/// Makes the archive of the files as they are, in `folder`. Nothing else is kept there.
pub fn make(folder: &Path, log: &Path) -> Result<PathBuf> {
    remove_dir(folder)?;
    let tree = folder.join(name());
    for file in git(&[&["ls-files", "-z", "--"], CONTENTS].concat())?.split_terminator('\0') {
        tree::copy(&paths::root().join(file), &tree.join(file))?;
    }
    manifest::keep_what_ships(&tree)?;
    vendor::vendor(&tree, log)?;
    // Where Debian's tools expect it.
    fs::rename(tree.join("packaging/debian"), tree.join("debian")).context("Cannot place debian/")?;
    debian::check(&tree)?;
    let archive = folder.join(format!("{}.tar.xz", name()));
    pack(folder, &archive, log)?;
    remove_dir(&tree)?;
    Ok(archive)
}

/// The SHA-256 of a file, in hexadecimal.
pub fn sha256(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| format!("Cannot read {}", file.display()))?;
    Ok(Hash::hash(&bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Packs the tree. Nothing in the archive depends on when, where and by whom it is packed.
fn pack(folder: &Path, archive: &Path, log: &Path) -> Result<()> {
    let time = git(&["log", "-1", "--format=%ct"])?;
    let mut tar = Command::new("tar");
    tar.env("LC_ALL", "C").arg("--directory").arg(folder).args([
        "--create",
        "--format=gnu",
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--mode=u=rwX,go=rX",
    ]);
    tar.arg(format!("--mtime=@{}", time.trim()));
    // One thread: with several, xz makes other blocks.
    tar.arg("--use-compress-program=xz --threads=1").arg("--file").arg(archive).arg(name());
    run_logged(&mut tar, log)
}

/// What git prints about the repository.
pub fn git(args: &[&str]) -> Result<String> {
    output(Command::new("git").current_dir(paths::root()).args(args))
}
