//! A host as a distribution ships it: the image of a Debian stable system with Debian's QEMU, libvirt and DPDK, and the
//! library's packages installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::debian_packages::{ENTER, built, debs, enter, open};
use crate::once;

/// What is installed besides the library, without what these only recommend.
const PACKAGES: &[&str] = &[
    "apparmor",
    // Its dpdk-testpmd, with the driver of Intel's network cards and the memory pools that it uses.
    "dpdk-dev",
    "librte-mempool-ring25",
    "librte-net-e1000-25",
    "e2fsprogs",
    "libvirt-clients",
    "libvirt-daemon-system",
    "mount",
    "qemu-system-x86",
];
/// The library's packages.
const OWN: &[&str] = &["libvfio-fast0", "vfio-fast-tools"];
const SCRIPT: &str = "images/assets/src/debian_host/image.sh";
const IMAGE: &str = "debian.img";

/// The image of an ext4 file system, from the cache or made now.
pub fn image(log: &Path) -> Result<PathBuf> {
    let debian = open()?;
    let system = debian.system("debian-host", PACKAGES)?;
    let library = built(&debian, log)?;
    let inputs = [system.display().to_string(), library.display().to_string()];
    let inputs = inputs.each_ref().map(String::as_str);
    let folder = once::made("debian-host-image", &[ENTER, SCRIPT], &inputs, |folder| {
        for deb in debs(&library, OWN)? {
            let name = deb.file_name().context("a package has a name")?;
            fs::copy(&deb, folder.join(name)).with_context(|| format!("Cannot copy {}", deb.display()))?;
        }
        enter("Make an image of a Debian host", &system, folder, SCRIPT, log)
    })?;
    Ok(folder.join(IMAGE))
}
