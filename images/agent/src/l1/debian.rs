//! Makes the Debian system on a disk the root of this machine. What is written to it is lost.

use std::env;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::chroot;

use crate::wait::{Seen, wait_for};

/// The disk; this machine has no other of its kind.
const DISK: &str = "/dev/vda";
/// Its driver has been loaded.
const DISK_WITHIN: Duration = Duration::from_secs(60);
/// Where everything is mounted at first.
const FOLDER: &str = "/debian";

/// Debian's QEMU.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// The program of the package vfio-fast-tools.
pub const RUN: &str = "/usr/bin/vfio-fast-run";
/// The library of the same package.
pub const PRELOADED: &str = "/usr/lib/vfio-fast/libvfio_fast_preload.so";

/// Enters it. The kernel's file systems stay where they are, and so does `/vft`.
pub fn enter() -> Result<()> {
    wait_for("the disk with Debian's system", DISK_WITHIN, || {
        Ok(Seen::of(Path::new(DISK).exists().then_some(()), || format!("no {DISK}")))
    })?;
    let at = |name: &str| format!("{FOLDER}/{name}");
    fs::create_dir(FOLDER)?;
    mount("tmpfs", FOLDER, "tmpfs", MountFlags::empty(), c"").context("cannot mount a tmpfs")?;
    for folder in ["lower", "upper", "work", "root"] {
        fs::create_dir(at(folder))?;
    }
    mount(DISK, at("lower"), "ext4", MountFlags::RDONLY, c"")
        .with_context(|| format!("cannot mount {DISK}"))?;
    let root = at("root");
    let options = c"lowerdir=/debian/lower,upperdir=/debian/upper,workdir=/debian/work";
    mount("overlay", &root, "overlay", MountFlags::empty(), options).context("cannot mount an overlay")?;
    fs::create_dir(format!("{root}/vft"))?;
    mount_bind("/vft", format!("{root}/vft")).context("cannot mount /vft")?;
    for folder in ["/dev", "/proc", "/run", "/sys"] {
        mount_move(folder, format!("{root}{folder}")).with_context(|| format!("cannot move {folder}"))?;
    }
    env::set_current_dir(&root)?;
    mount_move(".", "/").context("cannot make Debian's system the root")?;
    chroot(".").context("cannot enter Debian's system")?;
    env::set_current_dir("/")?;
    for (kind, target) in [("devpts", "/dev/pts"), ("tmpfs", "/dev/shm"), ("hugetlbfs", "/dev/hugepages")] {
        fs::create_dir_all(target)?;
        mount(kind, target, kind, MountFlags::empty(), c"")
            .with_context(|| format!("cannot mount {kind} on {target}"))?;
    }
    // Each machine has one, and the image has none.
    fs::write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n").context("cannot write a machine ID")
}
