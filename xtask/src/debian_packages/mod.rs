//! Builds Debian's packages as Debian does, and installs them: in clean systems of Debian stable, without network.

use std::path::Path;
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
    "packaging",
    "xtask/src/debian_packages",
    "xtask/src/dist",
];
/// What builds the packages and checks them.
const BUILDERS: &[&str] = &["build-essential", "cargo", "debhelper", "lintian", "rustc"];
/// What a developer has who uses the library.
const USERS: &[&str] = &["gcc", "libc6-dev", "pkgconf"];

/// Runs the check unless it has passed with the same files and the same versions of Debian's packages.
pub fn check_once(log: &Path) -> Result<()> {
    if !geteuid().is_root() {
        return Err(CannotRun("only root can make clean systems and enter them".into()).into());
    }
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    let debian = Debian::open(&cache, STABLE)?;
    let builders = debian.system("debian-builders", BUILDERS)?;
    let users = debian.system("debian-users", USERS)?;
    let systems = [builders.display().to_string(), users.display().to_string()];
    let also: Vec<&str> = systems.iter().map(String::as_str).collect();
    once::unless_passed("debian-packages", INPUTS, &also, || check(&builders, &users, log))
}

/// Builds the packages in the system `builders`, and installs them in the system `users`.
fn check(builders: &Path, users: &Path, log: &Path) -> Result<()> {
    let folder = paths::target().join("test/debian-packages");
    let shared = folder.join("shared");
    let archive = dist::make(&shared, log)?;
    let again = dist::make(&folder.join("again"), log)?;
    let (first, second) = (dist::sha256(&archive)?, dist::sha256(&again)?);
    ensure!(first == second, "the same files make the archives {first} and {second}");
    for (what, system, script) in
        [("Build the packages", builders, "build.sh"), ("Install the packages", users, "install.sh")]
    {
        let log = log.with_file_name(format!("debian-packages-{script}.log"));
        step(what, &log, |log| run_logged(&mut enter(system, &folder, script), log))?;
    }
    remove_dir(&folder.join("again"))
}

/// The command that runs a script in a system.
fn enter(system: &Path, folder: &Path, script: &str) -> Command {
    let scripts = paths::root().join("xtask/src/debian_packages");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "bash"]);
    command.arg(scripts.join("enter.sh")).arg(system);
    command.arg(folder.join("scratch")).arg(folder.join("shared")).arg(scripts.join(script));
    command
}
