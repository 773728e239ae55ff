//! Builds Debian's packages as Debian does, and installs them: in clean systems of Debian stable, without network.

pub mod qemu;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use rustix::process::geteuid;

use crate::{dist, once};
use vfio_fast_assets::cache::{Cache, remove_dir};
use vfio_fast_assets::debian::{Debian, STABLE};
use vfio_fast_assets::outcome::CannotRun;
use vfio_fast_assets::progress::{run_logged, step};
use vfio_fast_assets::{packages, paths};

/// What decides whether the packages build and work. Of what else is in the archive they contain texts only.
const INPUTS: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "engine/Cargo.toml",
    "engine/src",
    "ffi",
    "include",
    "packaging/apparmor",
    "packaging/completions",
    "packaging/debian",
    "packaging/man",
    "xtask/src/debian_packages/build.sh",
    "xtask/src/debian_packages/enter.sh",
    "xtask/src/debian_packages/install.sh",
    "xtask/src/dist",
];
/// What builds the packages and checks them.
const BUILDERS: &[&str] = &["build-essential", "cargo", "debhelper", "lintian", "rustc"];
/// What a developer has who uses the library.
const USERS: &[&str] = &["gcc", "libc6-dev", "pkgconf"];

/// Runs the check unless it has passed with the same files and the same versions of Debian's packages.
pub fn check_once(log: &Path) -> Result<()> {
    let debian = open()?;
    let users = debian.system("debian-users", USERS)?;
    let packages = built(&debian, log)?;
    let also = [users.display().to_string(), packages.display().to_string()];
    once::unless_passed("debian-packages", INPUTS, &also.each_ref().map(String::as_str), || {
        enter("Install the packages", &users, &packages, "install.sh", log)
    })
}

/// Debian stable, where this process can make clean systems of it.
fn open() -> Result<Debian> {
    if !geteuid().is_root() {
        return Err(CannotRun("only root can make clean systems and enter them".into()).into());
    }
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    Debian::open(&cache, STABLE)
}

/// The folder with the packages, from the cache or built now.
fn built(debian: &Debian, log: &Path) -> Result<PathBuf> {
    let builders = debian.system("debian-builders", BUILDERS)?;
    once::made("debian-packages", INPUTS, &[&builders.display().to_string()], |folder| {
        let archive = dist::make(folder, log)?;
        let again = paths::target().join("test/debian-packages-again");
        let (first, second) = (dist::sha256(&archive)?, dist::sha256(&dist::make(&again, log)?)?);
        ensure!(first == second, "the same files make the archives {first} and {second}");
        remove_dir(&again)?;
        enter("Build the packages", &builders, folder, "build.sh", log)
    })
}

/// Runs a script in a system, with the folder `shared` as /shared.
fn enter(what: &str, system: &Path, shared: &Path, script: &str, log: &Path) -> Result<()> {
    let scripts = paths::root().join("xtask/src/debian_packages");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "bash"]);
    command
        .arg(scripts.join("enter.sh"))
        .arg(system)
        .arg(paths::target().join("test/debian-packages-scratch"));
    command.arg(shared).arg(scripts.join(script)).arg(Cache::open()?.root().join("ccache"));
    let log = log.with_file_name(format!("debian-packages-{}.log", script.replace('/', "-")));
    step(what, &log, |log| run_logged(&mut command, log))
}
