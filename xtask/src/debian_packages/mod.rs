//! Installs Debian's packages of the library in a clean system of Debian stable, and uses them as their users would.

pub mod qemu;

use std::path::Path;

use anyhow::Result;
use vfio_fast_assets::debian_packages::{INPUTS, built, enter, open};
use vfio_fast_assets::once;

const INSTALL: &str = "xtask/src/debian_packages/install.sh";
/// What a developer has who uses the library.
const USERS: &[&str] = &["gcc", "libc6-dev", "pkgconf", "valgrind"];

/// Runs the check unless it has passed with the same packages and the same versions of Debian's packages.
pub fn check_once(log: &Path) -> Result<()> {
    let debian = open()?;
    let users = debian.system("debian-users", USERS)?;
    let packages = built(&debian, log)?;
    let also = [users.display().to_string(), packages.display().to_string()];
    let inputs = [INPUTS, &[INSTALL]].concat();
    once::unless_passed("debian-packages", &inputs, &also.each_ref().map(String::as_str), || {
        enter("Install the packages", &users, &packages, INSTALL, log)
    })
}
