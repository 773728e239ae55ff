//! Builds the library's RPM packages of the release archive, and uses them. The system is a clean one of Debian stable,
//! whose RPM reads the same spec; no other distribution has been tried.

use std::path::Path;

use anyhow::Result;
use vfio_fast_assets::cache::remove_dir;
use vfio_fast_assets::debian_packages::{enter, open};
use vfio_fast_assets::{paths, release};

const SCRIPT: &str = "xtask/src/rpm_packages/build.sh";
const BUILDERS: &[&str] =
    &["cargo", "debugedit", "file", "gcc", "libc6-dev", "pkgconf", "rpm", "rustc", "xz-utils"];

pub fn check(log: &Path) -> Result<()> {
    let debian = open()?;
    let builders = debian.system("rpm-builders", BUILDERS)?;
    let folder = paths::target().join("test/rpm-packages");
    release::make(&folder, log)?;
    enter("Build and install the RPM packages", &builders, &folder, SCRIPT, log)?;
    remove_dir(&folder)
}
