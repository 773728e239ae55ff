//! `cargo xtask qemu apply|build|refresh`: QEMU with and without the patches.

use anyhow::Result;
use vfio_fast_assets::cache::Cache;
use vfio_fast_assets::packages;
use vfio_fast_assets::qemu::{self, Kind};

/// What to do with QEMU.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Args {
    /// Unpack the source, apply the patches and leave a git tree to work in
    Apply {
        /// The patches of the emulator that the test machines run on
        #[arg(long)]
        emulator: bool,
        /// Discard commits and changes in the tree that the patch series does not have
        #[arg(long)]
        force: bool,
    },
    /// Build the binaries that are not in the cache, and print their paths: of one, the path alone
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

/// Runs one of the verbs.
pub fn run(args: &Args) -> Result<()> {
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    match args {
        Args::Apply { emulator, force } => qemu::apply(&cache, patched(*emulator), *force),
        Args::Refresh { emulator } => {
            print!("{}", qemu::refresh(patched(*emulator))?);
            Ok(())
        }
        Args::Build { kinds, keep } => {
            let all = [Kind::Stock, Kind::Off, Kind::On, Kind::Emulator];
            let kinds = if kinds.is_empty() { &all } else { kinds.as_slice() };
            for kind in kinds {
                let binary = qemu::build(&cache, *kind, *keep)?;
                // The path alone is what a script can use.
                if kinds.len() > 1 {
                    print!("{}: ", kind.name());
                }
                println!("{}", binary.display());
            }
            Ok(())
        }
    }
}

/// The kind that these patches make.
fn patched(emulator: bool) -> Kind {
    if emulator { Kind::Emulator } else { Kind::On }
}
