//! `cargo xtask dist`: makes the release archive.

use anyhow::{Result, ensure};
use vfio_fast_assets::progress::step;
use vfio_fast_assets::{paths, release};

/// Arguments of `dist`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {}

/// Makes the archive of the commit that is checked out, and prints its path and hash.
pub fn run(_: &Args) -> Result<()> {
    let changed = release::git(&["status", "--porcelain", "--untracked-files=no", "--"])?;
    ensure!(changed.is_empty(), "the archive is made of what is committed, but these are not:\n{changed}");
    let (folder, log) = (paths::target().join("dist"), paths::target().join("dist.log"));
    let archive = step("Make the release archive", &log, |log| release::make(&folder, log))?;
    println!("{}  {}", release::sha256(&archive)?, archive.display());
    Ok(())
}
