//! `cargo xtask setup`: installs and downloads ahead of time what the other verbs need.

use anyhow::Result;

use crate::machine;
use vfio_fast_assets::cache::Cache;
use vfio_fast_assets::debian::{Debian, STABLE};
use vfio_fast_assets::{kernel, packages, qemu};
use vfio_fast_protocol::qemu::QemuSeries;

/// Arguments of `setup`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Only show what this machine has and what is missing
    #[arg(long)]
    check: bool,
}

/// Installs the packages, and downloads the sources of the test machines and QEMU.
pub fn run(args: &Args) -> Result<()> {
    if args.check {
        return machine::report();
    }
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    for series in QemuSeries::ALL {
        let source = qemu::fetch(&cache, series)?;
        println!("QEMU {}: {}", source.version, source.dsc.display());
    }
    let kernel = Debian::open(&cache, STABLE)?.fetch_kernel("amd64")?;
    println!("{}: {}", kernel.package, kernel.path.display());
    let source = kernel::fetch(&cache)?;
    println!("{}: {}", source.package, source.path.display());
    println!("ready; the cache is {}", cache.root().display());
    Ok(())
}
