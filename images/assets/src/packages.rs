//! The Debian packages that the build machine needs, and their installation.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::Result;
use rustix::process::geteuid;

use crate::cache::Cache;
use crate::outcome::CannotRun;
use crate::progress::{self, run_logged_to_its_end};

/// All packages that building, unpacking and running on the build machine requires.
pub const NEEDED: &[&str] = &[
    // C programs that use the library, and QEMU.
    "gcc",
    "g++",
    "libc6-dev",
    "pkg-config",
    "binutils",
    // QEMU: build system and libraries.
    "bison",
    "ccache",
    "chrpath",
    "flex",
    "libattr1-dev",
    "libfdt-dev",
    "libglib2.0-dev",
    "libpixman-1-dev",
    "libseccomp-dev",
    "libslirp-dev",
    "ninja-build",
    "python3-venv",
    "zlib1g-dev",
    // The newest kernel.
    "bc",
    "libelf-dev",
    "make",
    // The kernel's own tests.
    "libcap-dev",
    "uuid-dev",
    // Sources, patches and images.
    "cpio",
    "dpkg-dev",
    "e2fsprogs",
    "git",
    "patch",
    "xz-utils",
    "zstd",
    // Tests for arm64.
    "gcc-aarch64-linux-gnu",
    "libc6-dev-arm64-cross",
    "qemu-user",
    // Clean systems to build packages in.
    "mmdebstrap",
];

/// Installs the missing packages. Without root or sudo, fails with exit code 69 and the list of packages.
pub fn ensure(cache: &Cache) -> Result<()> {
    ensure_also(cache, &[])
}

/// The same, and these packages, which few machines need.
pub fn ensure_also(cache: &Cache, also: &[&'static str]) -> Result<()> {
    let missing = missing(also)?;
    if missing.is_empty() {
        return Ok(());
    }
    let Some(apt) = apt_get() else {
        return Err(CannotRun(format!(
            "packages are missing, and neither root nor sudo without a password is available. Install them with:\n  \
             apt-get install --no-install-recommends {}",
            missing.join(" ")
        ))
        .into());
    };
    let _lock = cache.lock("packages")?;
    let log = cache.root().join("logs/packages.log");
    progress::step(&format!("Install {} Debian packages", missing.len()), &log, |log| {
        let run = |args: &[&str]| {
            let mut command = Command::new(apt[0]);
            command.args(&apt[1..]).args(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]);
            run_logged_to_its_end(
                command.args(["-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"]).args(args),
                log,
            )
        };
        // A fresh machine can lack an index, or have one that lists removed files.
        run(&["update"])?;
        let mut install = vec!["install", "--yes", "--no-install-recommends"];
        install.extend(&missing);
        run(&install)
    })
}

/// The packages that are not installed, of those that are needed and of `also`.
pub fn missing(also: &[&'static str]) -> Result<Vec<&'static str>> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status} ${Package}\n"]);
    let known = progress::output(&mut query)
        .map_err(|error| CannotRun(format!("this is not a Debian machine: {error:#}")))?;
    let installed: BTreeSet<&str> =
        known.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    Ok(NEEDED.iter().chain(also).copied().filter(|package| !installed.contains(package)).collect())
}

/// The command prefix that runs `env apt-get` as root, if there is a way.
fn apt_get() -> Option<&'static [&'static str]> {
    if geteuid().is_root() {
        return Some(&["nice"]);
    }
    let sudo = Command::new("sudo").args(["-n", "true"]).output();
    sudo.is_ok_and(|output| output.status.success()).then_some(&["sudo", "-n"])
}
