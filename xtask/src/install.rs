//! `cargo xtask install`: installs the library, its header, its pkg-config file and the programs below a prefix.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use vfio_fast_assets::library;

/// Arguments of `install`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Prefix from which the files will be used
    #[arg(long, value_name = "DIR")]
    prefix: PathBuf,
    /// Directory to prepend to the prefix while copying, for packagers
    #[arg(long, value_name = "DIR")]
    destdir: Option<PathBuf>,
}

/// Installs the library and prints the paths of the files.
pub fn run(args: &Args) -> Result<()> {
    ensure!(args.prefix.is_absolute(), "--prefix {}: not an absolute path", args.prefix.display());
    for file in library::install(&args.prefix, args.destdir.as_deref())? {
        println!("{}", file.display());
    }
    Ok(())
}
