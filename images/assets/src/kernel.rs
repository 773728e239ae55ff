//! The newest kernel with iommufd, which no kernel that Debian builds has. It is built from Debian's source with only
//! the options that the test machines need, and one of its sample devices is made to do DMA. The cache keeps the image,
//! ccache the objects.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Result, ensure};

use crate::cache::{Cache, Input, remove_dir};
use crate::debian::{self, Deb, Debian, UNSTABLE};
use crate::progress::{run_logged, step_measured};
use crate::{packages, paths};

/// The kernel's options. All others are off, and nothing is a module.
const CONFIG: &str = include_str!("../kernel.config");

/// What the source lacks for the tests, in the order in which it is applied.
const PATCHES: [&str; 1] =
    [include_str!("../kernel/0001-samples-vfio-mdev-mtty-Write-into-the-guest-s-memory.patch")];

/// Arguments for make. The same source and options always give the same image.
const MAKE: &[&str] = &[
    "CC=ccache gcc",
    "KBUILD_BUILD_TIMESTAMP=2026-01-01",
    "KBUILD_BUILD_USER=vfio-fast",
    "KBUILD_BUILD_HOST=vfio-fast",
];

/// Approximate number of lines that make prints for these options.
const OBJECTS: u64 = 2000;

/// Name of the image in the cache entry.
const IMAGE: &str = "vmlinuz";

/// The image, from the cache or built now.
pub fn built() -> Result<PathBuf> {
    image(&Cache::open()?)
}

/// Downloads the newest source of any series.
pub fn fetch(cache: &Cache) -> Result<Deb> {
    Debian::open(cache, UNSTABLE)?.fetch_latest("linux-source-", "")
}

fn image(cache: &Cache) -> Result<PathBuf> {
    packages::ensure(cache)?;
    let source = fetch(cache)?;
    // Stands for the host's compiler.
    let host = fs::read_to_string("/etc/debian_version").unwrap_or_default();
    let mut inputs = vec![Input::Text(CONFIG), Input::File(&source.path), Input::Text(&host)];
    inputs.extend(MAKE.iter().chain(&PATCHES).map(|text| Input::Text(text)));
    let entry = cache.entry("kernel", &inputs)?;
    let dir = entry.get_or_build(|dir| {
        let _lock = cache.lock("kernel-build")?;
        step_measured(&format!("Build a kernel of {}", source.package), &entry.log(), compiled, |log| {
            let tree = paths::target().join("kernel");
            unpack(&source, &tree, log)?;
            apply(&tree, log)?;
            configure(cache, &tree, log)?;
            let jobs = thread::available_parallelism().map_or(1, usize::from);
            run_logged(make(cache, &tree).arg(format!("-j{jobs}")).arg("bzImage"), log)?;
            fs::copy(tree.join("arch/x86/boot/bzImage"), dir.join(IMAGE))?;
            fs::copy(tree.join(".config"), dir.join("config"))?;
            remove_dir(&tree)
        })
    })?;
    Ok(dir.join(IMAGE))
}

/// The progress of the build: each line of the log that is not a command stands for one object.
fn compiled(log: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(log).ok()?;
    let done = text.lines().filter(|line| line.starts_with("  ")).count() as u64;
    (done > 0).then(|| (done.min(OBJECTS - 1), OBJECTS))
}

/// Unpacks the source package, which contains an archive.
pub(crate) fn unpack(source: &Deb, tree: &Path, log: &Path) -> Result<()> {
    remove_dir(tree)?;
    let outer = tree.join("deb");
    debian::unpack_debs(std::slice::from_ref(&source.path), &outer, log)?;
    let archive = outer.join("usr/src").join(format!("{}.tar.xz", source.package));
    run_logged(
        Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(tree).arg("--strip-components=1"),
        log,
    )?;
    remove_dir(&outer)
}

/// Applies the patches exactly: an offset is allowed, fuzz is not.
fn apply(tree: &Path, log: &Path) -> Result<()> {
    let file = tree.join("vfio-fast.patch");
    for patch in PATCHES {
        fs::write(&file, patch)?;
        run_logged(
            Command::new("patch").args(["-p1", "--fuzz=0", "-d"]).arg(tree).arg("-i").arg(&file),
            log,
        )?;
    }
    Ok(())
}

/// Sets the options and verifies them, because kconfig silently drops options that are unknown or lack a dependency.
fn configure(cache: &Cache, tree: &Path, log: &Path) -> Result<()> {
    let options = tree.join("vfio-fast.config");
    fs::write(&options, CONFIG)?;
    run_logged(make(cache, tree).env("KCONFIG_ALLCONFIG", &options).arg("allnoconfig"), log)?;
    let missing = missing(CONFIG, &fs::read_to_string(tree.join(".config"))?);
    ensure!(missing.is_empty(), "This kernel does not accept {}", missing.join(", "));
    Ok(())
}

pub(crate) fn make(cache: &Cache, tree: &Path) -> Command {
    let mut command = Command::new("make");
    command.arg("-C").arg(tree).args(MAKE);
    cache.share_objects(&mut command, tree);
    command
}

/// The wanted options that a configuration lacks.
fn missing<'a>(wanted: &'a str, found: &str) -> Vec<&'a str> {
    let options = wanted.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    options.filter(|option| !found.lines().any(|line| line == *option)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_was_dropped_is_missed() {
        let found = "CONFIG_SMP=y\n# CONFIG_VFIO is not set\nCONFIG_IOMMUFD_DRIVER=y\n";
        let wanted = "# Why.\nCONFIG_SMP=y\n\nCONFIG_VFIO=y\nCONFIG_IOMMUFD=y\n";
        assert_eq!(missing(wanted, found), ["CONFIG_VFIO=y", "CONFIG_IOMMUFD=y"]);
        assert!(missing(CONFIG, CONFIG).is_empty());
        assert!(missing(CONFIG, "").contains(&"CONFIG_IOMMUFD=y"));
    }
}
