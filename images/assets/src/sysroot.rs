//! Debian stable's libraries for arm64: programs are compiled against them here, and run with them in L1.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::{Cache, Input};
use crate::debian::{self, Debian, STABLE};
use crate::progress::{output, step};

/// The C library, the libraries of QEMU, and what these need. All of it is of one release, whatever release this machine
/// has: a program that was linked with a newer C library than L1's would not start there.
const PACKAGES: &[&str] = &[
    "libc6",
    "libc6-dev",
    "libgcc-s1",
    "linux-libc-dev",
    "libglib2.0-0t64",
    "libgio-2.0-dev",
    "libsysprof-capture-4-dev",
    "libpcre2-8-0",
    "libpcre2-dev",
    "libfdt1",
    "libfdt-dev",
    "libseccomp2",
    "libseccomp-dev",
    "zlib1g",
    "zlib1g-dev",
];

/// What only runs there: a library of those above needs it. A newer version does not build QEMU again.
const RUNTIME: &[&str] = &["libatomic1"];

/// Version of the layout in the cache. Change it to invalidate old entries.
const LAYOUT: &str = "sysroot 1";

/// How the names of the compiler and of its tools begin.
pub const TOOLS: &str = "aarch64-linux-gnu-";

/// Where Debian has the libraries.
const LIBRARIES: &str = "usr/lib/aarch64-linux-gnu";

/// The dynamic loader, which programs name by its path.
const LOADER: &str = "ld-linux-aarch64.so.1";

/// Folders with the packages unpacked.
#[derive(Clone, Debug)]
pub struct Sysroot {
    dir: PathBuf,
    runtime: PathBuf,
}

impl Sysroot {
    /// Fetches and unpacks the packages, or takes them from the cache.
    pub fn prepare(cache: &Cache) -> Result<Self> {
        let debian = Debian::open_for(cache, STABLE, "arm64")?;
        let runtime = debian.fetch_debs(RUNTIME)?;
        let inputs: Vec<Input> = runtime.iter().map(|deb| Input::File(deb)).collect();
        let entry = cache.entry("runtime-arm64", &inputs)?;
        let runtime = entry.get_or_build(|dir| debian::unpack_debs(&runtime, dir, &entry.log()))?;
        let debs = debian.fetch_debs(PACKAGES)?;
        let mut inputs = vec![Input::Text(LAYOUT)];
        inputs.extend(debs.iter().map(|deb| Input::File(deb)));
        let entry = cache.entry("sysroot-arm64", &inputs)?;
        let dir = entry.get_or_build(|dir| {
            step("Unpack the libraries for arm64", &entry.log(), |log| {
                debian::unpack_debs(&debs, dir, log)?;
                // A package for this link has much else.
                symlink("usr/lib", dir.join("lib")).context("Cannot link /lib")?;
                relocate_all(&dir.join(LIBRARIES).join("pkgconfig"))
            })
        })?;
        Ok(Self { dir, runtime })
    }

    /// Stands for the versions of all packages.
    pub fn key(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The option that makes a compiler use it, but for the headers of the C library, which came with the compiler.
    pub fn option(&self) -> String {
        format!("--sysroot={}", self.dir.display())
    }

    /// The option that makes a linker use it: otherwise the C library that this machine has for arm64 comes first.
    pub fn link_option(&self) -> String {
        format!("-L{}", self.dir.join(LIBRARIES).display())
    }

    /// The only folder in which pkg-config may look for libraries.
    pub fn pkg_config(&self) -> PathBuf {
        self.dir.join(LIBRARIES).join("pkgconfig")
    }

    /// The libraries that these programs need, and where in a machine they belong. Those in `own` are not among them.
    pub fn needed_by(&self, programs: &[&Path], own: &[PathBuf]) -> Result<Vec<(PathBuf, String)>> {
        let is_own = |name: &str| own.iter().any(|own| own.file_name().is_some_and(|own| own == name));
        let mut open: Vec<PathBuf> = programs.iter().map(|program| program.to_path_buf()).collect();
        let mut found = BTreeSet::new();
        while let Some(program) = open.pop() {
            for name in needed(&program)? {
                if !is_own(&name) && found.insert(name.clone()) {
                    let path = self.library(&name);
                    ensure!(path.exists(), "{} needs {name}, which no package has", program.display());
                    open.push(path);
                }
            }
        }
        found.insert(LOADER.to_owned());
        let place = |name: &String| if name == LOADER { "lib" } else { "lib/aarch64-linux-gnu" };
        Ok(found.iter().map(|name| (self.library(name), format!("{}/{name}", place(name)))).collect())
    }

    /// Where the library of that name is.
    fn library(&self, name: &str) -> PathBuf {
        let [path, runtime] = [&self.dir, &self.runtime].map(|dir| dir.join(LIBRARIES).join(name));
        if path.exists() { path } else { runtime }
    }
}

/// The names of the libraries that a program or a library names.
fn needed(program: &Path) -> Result<Vec<String>> {
    let dynamic = output(Command::new("readelf").arg("--dynamic").arg(program))?;
    let lines = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    let names = lines.filter_map(|line| line.split_once('[')?.1.strip_suffix(']'));
    Ok(names.map(str::to_owned).collect())
}

/// Makes every file of pkg-config name its libraries by where it is itself.
fn relocate_all(folder: &Path) -> Result<()> {
    for file in fs::read_dir(folder).with_context(|| format!("Cannot read {}", folder.display()))? {
        let path = file?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        fs::write(&path, relocate(&text)).with_context(|| format!("Cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A file of pkg-config with every value below /usr relative to its folder, usr/lib/aarch64-linux-gnu/pkgconfig.
fn relocate(text: &str) -> String {
    text.replace("=/usr", "=${pcfiledir}/../../..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_beside_their_file() {
        let debian =
            "prefix=/usr\nlibdir=${prefix}/lib/aarch64-linux-gnu\nincludedir=/usr/include\n\nLibs: -lz\n";
        let here = "prefix=${pcfiledir}/../../..\nlibdir=${prefix}/lib/aarch64-linux-gnu\n\
                    includedir=${pcfiledir}/../../../include\n\nLibs: -lz\n";
        assert_eq!(relocate(debian), here);
    }
}
