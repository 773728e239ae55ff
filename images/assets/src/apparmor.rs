//! AppArmor profiles for QEMU in L1, made of libvirt's rules as Debian has them. The kernel takes profiles in binary
//! form; Debian's parser makes that here, without loading anything into this machine's kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{Cache, Input};
use crate::debian::{self, Debian};
use crate::paths;
use crate::progress::{self, run_logged};

/// The parser with its C library, which can be newer than this machine's, and libvirt's rules.
const PACKAGES: [&str; 3] = ["apparmor", "libc6", "libvirt-daemon-driver-qemu"];
const RULES: &str = "etc/apparmor.d";
/// Where distributions install the rules of this repository, below the parser's folder of rules.
const INSTALLED: &str = "abstractions/libvirt-qemu.d/vfio-fast";
/// The features of Debian's kernel.
const FEATURES: &str = "usr/share/apparmor-features/features";

/// Makes the profiles `names`: libvirt's without the rules of this repository, and with them. Returns their files, which
/// have these names.
pub fn profiles(cache: &Cache, debian: &Debian, names: [&str; 2]) -> Result<Vec<PathBuf>> {
    let debs = debian.fetch_debs(&PACKAGES)?;
    let (source, rules) = (source(), paths::root().join("packaging/apparmor/vfio-fast"));
    let mut inputs = vec![Input::Text("apparmor 1"), Input::File(&source), Input::File(&rules)];
    inputs.extend(names.iter().map(|name| Input::Text(name)));
    inputs.extend(debs.iter().map(|deb| Input::File(deb)));
    let entry = cache.entry("apparmor", &inputs)?;
    let dir = entry.get_or_build(|dir| {
        progress::step("Make AppArmor profiles", &entry.log(), |log| {
            let root = dir.join("debian");
            debian::unpack_debs(&debs, &root, log)?;
            let [without, with] = names;
            compile(&root, without, dir, log)?;
            let installed = root.join(RULES).join(INSTALLED);
            fs::create_dir_all(installed.parent().context("a file has a folder")?)?;
            fs::copy(&rules, &installed).with_context(|| format!("Cannot copy {}", rules.display()))?;
            compile(&root, with, dir, log)?;
            crate::cache::remove_dir(&root)
        })
    })?;
    Ok(names.iter().map(|name| dir.join(name)).collect())
}

/// The text of the profiles.
fn source() -> PathBuf {
    paths::root().join("images/assets/apparmor/profile")
}

/// Makes one profile of the rules below `root`.
fn compile(root: &Path, name: &str, to: &Path, log: &Path) -> Result<()> {
    let text = fs::read_to_string(source())?.replace("@NAME@", name);
    let profile = root.join(name);
    fs::write(&profile, text)?;
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let (rules, features) = (root.join(RULES), root.join(FEATURES));
    let mut parser = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    parser.arg("--library-path").arg(&libraries).arg(root.join("usr/sbin/apparmor_parser"));
    parser.args(["--config-file", "/dev/null", "--skip-kernel-load", "--skip-cache"]);
    for (option, path) in [
        ("--base", &rules),
        ("--Include", &rules),
        ("--policy-features", &features),
        ("--kernel-features", &features),
        ("--ofile", &to.join(name)),
    ] {
        parser.arg(option).arg(path);
    }
    run_logged(parser.arg(&profile), log)
}
