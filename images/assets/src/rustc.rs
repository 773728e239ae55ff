//! The Rust compiler of Debian stable, which distributions build the library with.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::Result;

use crate::cache::{Cache, Input};
use crate::debian::{self, Debian, STABLE};
use crate::progress;

/// The compiler without its standard library, whose package has the compiler's version in its name.
const PACKAGES: [&str; 16] = [
    "rustc",
    "libstd-rust-dev",
    "libllvm19",
    // Its libraries, which can be newer than this machine's.
    "libc6",
    "libedit2",
    "libffi8",
    "libgcc-s1",
    "libstdc++6",
    "libxml2",
    "libz3-4",
    "libzstd1",
    "zlib1g",
    "libicu76",
    "libbsd0",
    "libmd0",
    "liblzma5",
];
/// Starts the compiler with its own C library. Cargo takes it as RUSTC.
const START: &str = "#!/bin/sh
root=$(dirname \"$(readlink -f \"$0\")\")/debian/usr
exec \"$root/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2\" --library-path \"$root/lib/x86_64-linux-gnu\" \\
    \"$root/bin/rustc\" --sysroot \"$root\" \"$@\"
";

/// Downloads and unpacks the compiler. Returns the program that starts it.
pub fn of_debian_stable(cache: &Cache) -> Result<PathBuf> {
    let debian = Debian::open(cache, STABLE)?;
    let mut debs = debian.fetch_debs(&PACKAGES)?;
    debs.push(debian.fetch_latest("libstd-rust-", "")?.path);
    let mut inputs = vec![Input::Text("rustc 1"), Input::Text(START)];
    inputs.extend(debs.iter().map(|deb| Input::File(deb)));
    let entry = cache.entry("rustc", &inputs)?;
    let dir = entry.get_or_build(|dir| {
        progress::step("Unpack the Rust compiler of Debian stable", &entry.log(), |log| {
            debian::unpack_debs(&debs, &dir.join("debian"), log)?;
            let start = dir.join("rustc");
            fs::write(&start, START)?;
            Ok(fs::set_permissions(&start, fs::Permissions::from_mode(0o755))?)
        })
    })?;
    Ok(dir.join("rustc"))
}
