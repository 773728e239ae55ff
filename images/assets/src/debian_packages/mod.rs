//! Builds the library's Debian packages as Debian does, in a clean system of Debian stable without network, and runs
//! scripts in such systems.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::geteuid;

use crate::cache::{Cache, remove_dir};
use crate::debian::{Debian, STABLE};
use crate::outcome::CannotRun;
use crate::progress::{run_logged, step};
use crate::{once, packages, paths, release};

/// What decides whether the packages build and work. Of what else is in the archive they contain texts only.
pub const INPUTS: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "engine/Cargo.toml",
    "engine/src",
    "ffi",
    "images/assets/src/debian_packages/build.sh",
    ENTER,
    "images/assets/src/release",
    "include",
    "packaging/apparmor",
    "packaging/completions",
    "packaging/debian",
    "packaging/man",
];
/// The script that enters a system.
pub const ENTER: &str = "images/assets/src/debian_packages/enter.sh";
const BUILD: &str = "images/assets/src/debian_packages/build.sh";
/// What builds the packages and checks them.
const BUILDERS: &[&str] = &["build-essential", "cargo", "debhelper", "lintian", "rustc"];

/// Debian stable, where this process can make clean systems of it.
pub fn open() -> Result<Debian> {
    if !geteuid().is_root() {
        return Err(CannotRun("only root can make clean systems and enter them".into()).into());
    }
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    Debian::open(&cache, STABLE)
}

/// The folder with the packages, from the cache or built now.
pub fn built(debian: &Debian, log: &Path) -> Result<PathBuf> {
    let builders = debian.system("debian-builders", BUILDERS)?;
    once::made("debian-packages", INPUTS, &[&builders.display().to_string()], |folder| {
        let archive = release::make(folder, log)?;
        let again = paths::target().join("test/debian-packages-again");
        let (first, second) = (release::sha256(&archive)?, release::sha256(&release::make(&again, log)?)?);
        ensure!(first == second, "the same files make the archives {first} and {second}");
        remove_dir(&again)?;
        enter("Build the packages", &builders, folder, BUILD, log)
    })
}

/// The files of packages in a folder, which must all be there.
pub fn debs(folder: &Path, packages: &[&str]) -> Result<Vec<PathBuf>> {
    let items = fs::read_dir(folder).with_context(|| format!("Cannot read {}", folder.display()))?;
    let names: Vec<_> = items.map(|item| Ok(item?.file_name())).collect::<Result<_>>()?;
    let file = |package: &&str| {
        let is = |name: &str| name.starts_with(&format!("{package}_")) && name.ends_with(".deb");
        let found = names.iter().find(|name| is(&name.to_string_lossy()));
        Ok(folder.join(found.with_context(|| format!("{package} was not built"))?))
    };
    packages.iter().map(file).collect()
}

/// Runs a script of the repository in a system, with the folder `shared` as /shared. What else it writes is discarded.
pub fn enter(what: &str, system: &Path, shared: &Path, script: &str, log: &Path) -> Result<()> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "bash"]);
    command
        .arg(paths::root().join(ENTER))
        .arg(system)
        .arg(paths::target().join("test/debian-packages-scratch"));
    command.arg(shared).arg(paths::root().join(script)).arg(Cache::open()?.root().join("ccache"));
    let name = what.to_lowercase().replace([' ', '\''], "-");
    let log = log.with_file_name(format!("{name}.log"));
    step(what, &log, |log| run_logged(&mut command, log))
}
