//! Skips checks and builds that take minutes if nothing they depend on has changed since they passed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Cache, Input};
use crate::paths;
use crate::progress::output;
use anyhow::Result;

/// Runs a check unless it has passed with the same files, in this checkout or another. `also` lists further inputs
/// besides files and folders of the repository.
pub fn unless_passed(
    name: &str,
    files: &[&str],
    also: &[&str],
    check: impl FnOnce() -> Result<()>,
) -> Result<()> {
    made(&format!("passed-{name}"), files, also, |_| check()).map(drop)
}

/// The folder that `make` fills, unless it has done so with the same inputs.
pub fn made(
    name: &str,
    files: &[&str],
    also: &[&str],
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let paths: Vec<PathBuf> = files.iter().map(|file| paths::root().join(file)).collect();
    let mut inputs: Vec<Input> = paths.iter().map(|path| input(path)).collect();
    inputs.extend(also.iter().map(|text| Input::Text(text)));
    Cache::open()?.entry(name, &inputs)?.get_or_build(make)
}

/// The version of the compiler, for `also`.
pub fn compiler() -> Result<String> {
    output(Command::new("rustc").arg("-vV"))
}

fn input(path: &Path) -> Input<'_> {
    if path.is_dir() { Input::Dir(path) } else { Input::File(path) }
}
