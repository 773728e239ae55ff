//! `cargo xtask qemu apply|build|refresh`: QEMU with and without the patches.

use anyhow::Result;
use vfio_fast_assets::cache::Cache;
use vfio_fast_assets::packages;
use vfio_fast_assets::qemu::{self, Kind};
use vfio_fast_protocol::qemu::QemuSeries;

/// Verbs of `qemu`.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Args {
    /// Unpack the source, apply the patches and leave a git tree to work in
    Apply {
        #[command(flatten)]
        series: OfSeries,
        /// Use the patches of the emulator that runs the test machines
        #[arg(long, conflicts_with = "of")]
        emulator: bool,
        /// Discard commits and changes in the tree that are not in the patch series
        #[arg(long)]
        force: bool,
    },
    /// Build the binaries that are not in the cache, and print their paths (one binary: only its path)
    Build {
        #[command(flatten)]
        series: OfSeries,
        /// Binaries to build; by default all but `sanitized` and `on-arm64`
        #[arg(value_enum)]
        kinds: Vec<Kind>,
        /// Keep the object trees of new builds for inspection
        #[arg(long)]
        keep: bool,
    },
    /// Write the commits of the tree back as the patch series
    Refresh {
        #[command(flatten)]
        series: OfSeries,
        /// Use the patches of the emulator that runs the test machines
        #[arg(long, conflicts_with = "of")]
        emulator: bool,
    },
}

/// The QEMU series that a verb works on.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct OfSeries {
    /// The QEMU series: a folder of qemu-patches
    #[arg(long = "series", value_parser = QemuSeries::named, default_value_t = QemuSeries::USUAL)]
    of: QemuSeries,
}

pub fn run(args: &Args) -> Result<()> {
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    match args {
        Args::Apply { series, emulator, force } => qemu::apply(&cache, series.of, patched(*emulator), *force),
        Args::Refresh { series, emulator } => {
            print!("{}", qemu::refresh(series.of, patched(*emulator))?);
            Ok(())
        }
        Args::Build { series, kinds, keep } => {
            let all = [Kind::Stock, Kind::Off, Kind::On, Kind::Emulator, Kind::EmulatorArm64];
            let kinds = if kinds.is_empty() { &all } else { kinds.as_slice() };
            for kind in kinds {
                let is_emulator = matches!(kind, Kind::Emulator | Kind::EmulatorArm64);
                let of = if is_emulator { QemuSeries::USUAL } else { series.of };
                let binary = qemu::build(&cache, of, *kind, *keep)?;
                // A script can use a path without the name.
                if kinds.len() > 1 {
                    print!("{}: ", kind.name());
                }
                println!("{}", binary.display());
            }
            Ok(())
        }
    }
}

/// The kind of QEMU that these patches are for.
fn patched(emulator: bool) -> Kind {
    if emulator { Kind::Emulator } else { Kind::On }
}

#[cfg(test)]
mod tests {
    use clap::{Command, Subcommand};

    use super::*;

    #[test]
    fn the_emulator_has_no_other_series() {
        let accepts = |words: &str| {
            let line = ["qemu"].into_iter().chain(words.split(' '));
            Args::augment_subcommands(Command::new("qemu")).try_get_matches_from(line).is_ok()
        };
        for verb in ["apply", "refresh"] {
            assert!(accepts(&format!("{verb} --emulator")) && accepts(&format!("{verb} --series 10.2")));
            assert!(!accepts(&format!("{verb} --emulator --series 10.2")), "{verb}");
        }
        assert!(!accepts("build --series 9.2"));
    }
}
