//! QEMU with and without the patches.
//!
//! Debian's source of one series, our patches on top, and four binaries that the cache keeps: three to be tested, and one
//! to test in.

mod build;
mod series;
mod tree;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;

use crate::cache::Cache;
use crate::debian::{Debian, STABLE, Source};
use crate::paths;

use series::Series;

/// The QEMU series the patches are for; Debian trixie carries it.
const SERIES: &str = "10.0";

/// One of the four binaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Debian's source, unpatched
    Stock,
    /// Patched, the feature left out
    Off,
    /// Patched, the feature built in
    On,
    /// What the test machines run on: unpatched but for faults of its emulation of SVM
    Emulator,
}

impl Kind {
    /// Its name in paths and messages.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Stock => "stock",
            Kind::Off => "off",
            Kind::On => "on",
            Kind::Emulator => "emulator",
        }
    }

    /// Where its patches are: of the emulator, or the ones for users of the library.
    fn patches(self) -> PathBuf {
        match self {
            Kind::Emulator => paths::root().join("images/emulator"),
            Kind::Stock | Kind::Off | Kind::On => paths::root().join("qemu-patches").join(SERIES),
        }
    }

    /// The tree to work on them in.
    fn work_tree(self) -> PathBuf {
        match self {
            Kind::Emulator => target().join("emulator"),
            Kind::Stock | Kind::Off | Kind::On => target().join(SERIES),
        }
    }
}

/// Unpacks the source, applies the patches of this kind and leaves a git tree to work in. `force` discards what the tree
/// has and the series does not.
pub fn apply(cache: &Cache, kind: Kind, force: bool) -> Result<()> {
    let source = fetch(&Debian::open(cache, STABLE)?)?;
    tree::apply(&source, &Series::open(&kind.patches())?, &kind.work_tree(), force)
}

/// Writes the commits of the tree back as the patches of this kind; returns what changed.
pub fn refresh(kind: Kind) -> Result<String> {
    tree::refresh(&Series::open(&kind.patches())?, &kind.work_tree())
}

/// The binary of this kind, from the cache or built now; with `keep` the object tree of what is built now stays.
pub fn build(cache: &Cache, kind: Kind, keep: bool) -> Result<PathBuf> {
    build::binary(cache, kind, keep)
}

/// The binary of this kind, from the cache or built now.
pub fn built(kind: Kind) -> Result<PathBuf> {
    build::binary(&Cache::open()?, kind, false)
}

/// Downloads Debian's source of the series.
pub fn fetch(debian: &Debian) -> Result<Source> {
    debian.fetch_source("qemu", SERIES)
}

/// Checks that the series apply, every patch exactly.
pub fn check_series() -> Result<()> {
    let cache = Cache::open()?;
    build::check_series(&cache)
}

/// Builds every commit of the series with the feature off and on.
pub fn check_each_patch() -> Result<()> {
    let cache = Cache::open()?;
    build::check_each_patch(&cache)
}

fn target() -> PathBuf {
    paths::target().join("qemu")
}

/// Where logs of work on a tree go.
fn log(name: &str) -> PathBuf {
    target().join("logs").join(format!("{name}.log"))
}

fn display_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
