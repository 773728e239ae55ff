//! QEMU with and without the patches: `cargo xtask qemu apply|build|refresh`.
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
use crate::{packages, paths};

use series::Series;

/// The QEMU series the patches are for; Debian trixie carries it.
const SERIES: &str = "10.0";

/// What to do with QEMU.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Args {
    /// Unpack the source, apply the patches and leave a git tree to work in
    Apply {
        /// The patches of the emulator that the test machines run on
        #[arg(long)]
        emulator: bool,
        /// Throw away commits and changes in the tree that the patch series does not have
        #[arg(long)]
        force: bool,
    },
    /// Build the binaries that are not in the cache, and print where they are
    Build {
        /// Only these; all four by default
        #[arg(value_enum)]
        kinds: Vec<Kind>,
        /// Keep the object trees of what is built now, for a closer look
        #[arg(long)]
        keep: bool,
    },
    /// Write the commits of the tree back as the patch series
    Refresh {
        /// The patches of the emulator that the test machines run on
        #[arg(long)]
        emulator: bool,
    },
}

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

/// Runs one of the verbs.
pub fn run(args: &Args) -> Result<()> {
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    match args {
        Args::Apply { emulator, force } => {
            let source = fetch(&Debian::open(&cache, STABLE)?)?;
            let kind = patched(*emulator);
            tree::apply(&source, &Series::open(&kind.patches())?, &kind.work_tree(), *force)
        }
        Args::Refresh { emulator } => {
            let kind = patched(*emulator);
            print!("{}", tree::refresh(&Series::open(&kind.patches())?, &kind.work_tree())?);
            Ok(())
        }
        Args::Build { kinds, keep } => {
            let all = [Kind::Stock, Kind::Off, Kind::On, Kind::Emulator];
            let kinds = if kinds.is_empty() { &all } else { kinds.as_slice() };
            for kind in kinds {
                println!("{}: {}", kind.name(), build::binary(&cache, *kind, *keep)?.display());
            }
            Ok(())
        }
    }
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

/// The kind whose patches are meant.
fn patched(emulator: bool) -> Kind {
    if emulator { Kind::Emulator } else { Kind::On }
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
