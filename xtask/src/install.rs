//! `cargo xtask install`: the library, its header and its pkg-config file below a prefix.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use vfio_fast_assets::library;

/// Where to install to.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Where the files will be used from
    #[arg(long, value_name = "DIR")]
    prefix: PathBuf,
    /// Put in front of the prefix while copying, for packages
    #[arg(long, value_name = "DIR")]
    destdir: Option<PathBuf>,
}

/// Installs the library and prints the files.
pub fn run(args: &Args) -> Result<()> {
    ensure!(args.prefix.is_absolute(), "--prefix {}: not an absolute path", args.prefix.display());
    for file in library::install(&args.prefix, args.destdir.as_deref())? {
        println!("{}", file.display());
    }
    Ok(())
}
