//! `cargo xtask pages`: generates the man pages and shell completions in `packaging/`.

mod comment;
mod header;
mod program;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::CommandFactory;
use vfio_fast_cli::{doctor, run};

use vfio_fast_assets::{library, paths};

/// All pages.
const PAGES: [&str; 3] = ["vfio_fast(3)", "vfio-fast-doctor(1)", "vfio-fast-run(1)"];

/// Arguments of `pages`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Write nothing; fail if a file in the repository is out of date
    #[arg(long)]
    check: bool,
}

/// Writes the files and prints their paths.
pub fn run(args: &Args) -> Result<()> {
    if args.check {
        return check();
    }
    for (path, text) in generate()? {
        fs::create_dir_all(path.parent().context("a file has a folder")?)?;
        fs::write(&path, text).with_context(|| format!("Cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Fails if a file in the repository differs from the one that is generated.
pub fn check() -> Result<()> {
    for (path, text) in generate()? {
        if fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
            bail!("{} is out of date: `cargo xtask pages` regenerates it", path.display());
        }
    }
    Ok(())
}

/// All files with their paths.
fn generate() -> Result<Vec<(PathBuf, String)>> {
    let packaging = paths::root().join("packaging");
    let file = |page: &str| packaging.join("man").join(page.replace('(', ".").replace(')', ""));
    let header = fs::read_to_string(library::header())?;
    let [library, doctor, run] = PAGES;
    let mut files = vec![(file(library), header::page(&header, &[doctor, run])?)];
    for (command, page, others) in
        [(doctor::Cli::command(), doctor, [run, library]), (run::Cli::command(), run, [doctor, library])]
    {
        files.push((file(page), program::page(&command, &others)?));
        for (shell, name) in program::SHELLS {
            let name = name.replace("NAME", command.get_name());
            files.push((packaging.join("completions").join(name), program::completion(&command, shell)?));
        }
    }
    Ok(files)
}
