//! Builds Debian stable's QEMU with the patches as Debian's packages, and installs them in place of Debian's own: in
//! clean systems, without network.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use vfio_fast_protocol::qemu::QemuSeries;

use vfio_fast_assets::cache::Cache;
use vfio_fast_assets::debian::{Debian, Source};
use vfio_fast_assets::debian_packages::{ENTER, built, debs, enter, open};
use vfio_fast_assets::{once, qemu, release};

/// What decides, besides the library's packages, what QEMU's packages are.
const INPUTS: &[&str] = &["packaging/qemu", "qemu-patches/10.0", ENTER, BUILD];
const BUILD: &str = "xtask/src/debian_packages/qemu/build.sh";
/// What else decides whether they work.
const INSTALL: &str = "xtask/src/debian_packages/qemu/install.sh";

/// The build profiles: packages for hosts that run x86 guests, without Debian's tests of the block layer.
const PROFILES: &[&str] = &[
    "nocheck",
    "pkg.qemu.omit-system-xen",
    "pkg.qemu.omit-user",
    "pkg.qemu.only-x86",
    "pkg.qemu.use-upstream-vdso",
];

/// The packages that are built: those that Debian ties to the version of `qemu-system-x86`.
const PACKAGES: &[&str] = &[
    "qemu-block-extra",
    "qemu-system-common",
    "qemu-system-gui",
    "qemu-system-modules-opengl",
    "qemu-system-modules-spice",
    "qemu-system-x86",
    "qemu-utils",
];

/// Runs the check unless it has passed with the same files and the same versions of Debian's packages.
pub fn check_once(log: &Path) -> Result<()> {
    let debian = open()?;
    let source = qemu::fetch(&Cache::open()?, QemuSeries::V10_0)?;
    let users = debian.system("debian-qemu-users", PACKAGES)?;
    let packages = packages(&debian, &source, log)?;
    let also = [users.display().to_string(), packages.display().to_string()];
    once::unless_passed("debian-qemu", &[INSTALL], &also.each_ref().map(String::as_str), || {
        enter("Install QEMU's packages", &users, &packages, INSTALL, log)
    })
}

/// The folder with the packages of QEMU and of the library, from the cache or built now.
fn packages(debian: &Debian, source: &Source, log: &Path) -> Result<PathBuf> {
    let library = built(debian, log)?;
    let mut needed = debian.build_dependencies("qemu", &source.version, PROFILES)?;
    needed.extend(["ccache", "lintian"].map(str::to_owned));
    let needed: Vec<&str> = needed.iter().map(String::as_str).collect();
    let builders = debian.system("debian-qemu-builders", &needed)?;
    let own = debian.fetch_debs(PACKAGES)?;
    let mut inputs = vec![PROFILES.join(","), fs::read_to_string(&source.dsc)?];
    inputs.extend([&library, &builders].into_iter().chain(&own).map(|path| path.display().to_string()));
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    once::made("debian-qemu", INPUTS, &inputs, |folder| {
        // As an operator gets them: from the archive of a release.
        release::make(folder, log)?;
        copy(files(source.dsc.parent().context("a file has a folder")?)?, &folder.join("source"))?;
        copy(own, &folder.join("debian"))?;
        copy(debs(&library, &["libvfio-fast0", "libvfio-fast-dev"])?, folder)?;
        fs::write(folder.join("profiles"), PROFILES.join(","))?;
        enter("Build QEMU's packages", &builders, folder, BUILD, log)?;
        debs(folder, PACKAGES).map(drop)
    })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let items = fs::read_dir(folder).with_context(|| format!("Cannot read {}", folder.display()))?;
    items.map(|item| Ok(item?.path())).collect()
}

fn copy(files: Vec<PathBuf>, into: &Path) -> Result<()> {
    ensure!(!files.is_empty(), "there is no file for {}", into.display());
    fs::create_dir_all(into)?;
    for file in files {
        let name = file.file_name().context("a file has a name")?;
        fs::copy(&file, into.join(name)).with_context(|| format!("Cannot copy {}", file.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_fast_assets::paths;

    #[test]
    fn an_operator_builds_with_the_profiles_that_are_checked() {
        let page = fs::read_to_string(paths::root().join("docs/PACKAGING.md")).unwrap();
        assert!(page.contains(&format!("\nprofiles={}\n", PROFILES.join(","))));
    }
}
