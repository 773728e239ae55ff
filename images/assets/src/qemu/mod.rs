//! QEMU with and without the patches.
//!
//! The base is Debian's source of a QEMU series. The cache keeps three binaries to be tested of each, and the emulator
//! that the test machines run on.

mod build;
pub mod listener;
pub mod own_tests;
mod series;
#[cfg(test)]
mod shared;
mod tree;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use vfio_fast_protocol::qemu::QemuSeries;

use crate::cache::Cache;
use crate::debian::{Debian, STABLE, Source, UNSTABLE};
use crate::{paths, sysroot};

use series::Series;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Debian's source, unpatched
    Stock,
    /// Patched, without the feature
    Off,
    /// Patched, with the feature
    On,
    /// The same, compiled with AddressSanitizer and UndefinedBehaviorSanitizer
    Sanitized,
    /// Unpatched except for fixes to its SVM emulation; runs the test machines
    Emulator,
    /// The same for arm64
    EmulatorArm64,
    /// `on` for machines with arm64 processors, which it needs KVM for
    OnArm64,
}

impl Kind {
    /// Name in paths and messages.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Stock => "stock",
            Kind::Off => "off",
            Kind::On => "on",
            Kind::Sanitized => "sanitized",
            Kind::Emulator => "emulator",
            Kind::EmulatorArm64 => "emulator-arm64",
            Kind::OnArm64 => "on-arm64",
        }
    }

    /// Whether it has the feature.
    pub fn has_library(self) -> bool {
        matches!(self, Kind::On | Kind::Sanitized | Kind::OnArm64)
    }

    /// The processor that it emulates, as QEMU names it.
    fn processor(self) -> &'static str {
        match self {
            Kind::EmulatorArm64 | Kind::OnArm64 => "aarch64",
            _ => "x86_64",
        }
    }

    /// How the names of the compiler and of its tools begin.
    fn tools(self) -> &'static str {
        if self == Kind::OnArm64 { sysroot::TOOLS } else { "" }
    }

    /// The name of the binary.
    fn binary(self) -> String {
        format!("qemu-system-{}", self.processor())
    }

    /// The folder with the patches: those of the emulator, or those for users of the library.
    fn patches(self, of: QemuSeries) -> PathBuf {
        match self {
            Kind::Emulator | Kind::EmulatorArm64 => paths::root().join("images/emulator"),
            _ => paths::root().join("qemu-patches").join(of.name()),
        }
    }

    /// The git tree in which a developer edits the patches.
    fn work_tree(self, of: QemuSeries) -> PathBuf {
        match self {
            Kind::Emulator | Kind::EmulatorArm64 => target().join("emulator"),
            _ => target().join(of.name()),
        }
    }
}

/// Unpacks the source, applies the patches of this kind and leaves a git tree to work in. `force` discards commits
/// and changes in the tree that are not in the series.
pub fn apply(cache: &Cache, of: QemuSeries, kind: Kind, force: bool) -> Result<()> {
    let source = fetch(cache, of)?;
    tree::apply(&source, &Series::open(&kind.patches(of))?, &kind.work_tree(of), force)
}

/// Writes the commits of the tree back as the patches of this kind. Returns the files.
pub fn refresh(of: QemuSeries, kind: Kind) -> Result<String> {
    tree::refresh(&Series::open(&kind.patches(of))?, &kind.work_tree(of))
}

/// The binary of this kind, from the cache or built now. With `keep`, the object tree of a new build is not removed.
pub fn build(cache: &Cache, of: QemuSeries, kind: Kind, keep: bool) -> Result<PathBuf> {
    build::binary(cache, of, kind, keep)
}

/// The binary of this kind, from the cache or built now.
pub fn built(of: QemuSeries, kind: Kind) -> Result<PathBuf> {
    build::binary(&Cache::open()?, of, kind, false)
}

/// Downloads Debian's source of the series.
pub fn fetch(cache: &Cache, of: QemuSeries) -> Result<Source> {
    let suite = match of {
        QemuSeries::V10_0 => STABLE,
        QemuSeries::V10_2 => UNSTABLE,
    };
    Debian::open(cache, suite)?.fetch_source("qemu", of.name())
}

/// Checks that every patch of each series, and of the emulator, applies exactly.
pub fn check_series() -> Result<()> {
    let cache = Cache::open()?;
    build::check_series(&cache)
}

/// Builds each commit of the series with the feature off and on.
pub fn check_each_patch(of: QemuSeries) -> Result<()> {
    let cache = Cache::open()?;
    build::check_each_patch(&cache, of)
}

fn target() -> PathBuf {
    paths::target().join("qemu")
}

/// The path of a log about work on a tree.
fn log(name: &str) -> PathBuf {
    target().join("logs").join(format!("{name}.log"))
}

fn display_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;
    use crate::debian::in_series;

    #[test]
    fn every_folder_with_a_base_is_a_series() {
        let folders = fs::read_dir(paths::root().join("qemu-patches")).unwrap().flatten();
        let with_base = folders.filter(|folder| folder.path().join(series::BASE).exists());
        let found: BTreeSet<String> =
            with_base.map(|folder| folder.file_name().into_string().unwrap()).collect();
        // The checks of `cargo xtask test` go through this list, so a folder that it lacks would not be built.
        assert_eq!(found, QemuSeries::ALL.map(|of| of.name().to_owned()).into());
    }

    #[test]
    fn a_series_was_made_on_its_own_source() {
        for of in QemuSeries::ALL {
            let base = Series::open(&Kind::On.patches(of)).unwrap().base().unwrap();
            assert!(in_series(&base, of.name()), "{of}: {base}");
        }
    }

    #[test]
    fn series_share_no_tree() {
        let trees = |of| [Kind::On.work_tree(of), build::folder(of)];
        let mut all: Vec<PathBuf> = QemuSeries::ALL.into_iter().flat_map(trees).collect();
        all.push(Kind::Emulator.work_tree(QemuSeries::USUAL));
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");
    }
}
