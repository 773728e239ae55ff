//! Builds QEMU with its own tests, of all devices.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use vfio_fast_protocol::qemu::QemuSeries;

use super::build::{Bench, Objects};
use super::{Kind, target};
use crate::cache::{Cache, remove_dir};
use crate::debian::{self, Debian, STABLE};
use crate::packages;

/// The packages with the firmware that QEMU loads, because Debian's source has none, and their folders.
const FIRMWARE: [&str; 3] = ["seabios", "qemu-system-data", "ipxe-qemu"];
const FIRMWARE_FOLDERS: [&str; 2] = ["usr/share/seabios", "usr/share/qemu"];
/// How long a test program may take.
const SECONDS: &str = "1800";
/// Where a QEMU that was not installed looks for firmware.
const BUNDLE: &str = "qemu-bundle/usr/local/share/qemu";

/// A built QEMU and its tests.
#[derive(Debug)]
pub struct Built {
    /// The folder of the build, in which tests are run.
    pub dir: PathBuf,
    /// The source, in which functional tests are.
    pub tree: PathBuf,
    python: PathBuf,
    /// Where the library is that it was linked with.
    library: Option<PathBuf>,
}

impl Built {
    /// One of the programs that were built, as meson would run it: its results are printed in the TAP format.
    pub fn program(&self, name: &str) -> Command {
        let mut command = self.environment(&self.dir.join(name));
        command.env("QTEST_QEMU_BINARY", "./qemu-system-x86_64").args(["--tap", "-k"]);
        command.env("PYTHON", &self.python);
        command
    }

    /// A functional test of the tree.
    pub fn functional(&self, name: &str) -> Option<Command> {
        let folders = ["", "x86_64", "generic"].map(|folder| self.tree.join("tests/functional").join(folder));
        let file = folders.iter().map(|folder| folder.join(name)).find(|file| file.exists())?;
        let mut command = self.environment(&self.python);
        let modules = ["python", "tests/functional"].map(|path| self.tree.join(path).display().to_string());
        command.arg(file).env("PYTHONPATH", modules.join(":")).env("PYTHONDONTWRITEBYTECODE", "1");
        command.env("QEMU_TEST_QEMU_BINARY", self.dir.join("qemu-system-x86_64"));
        command.env("QEMU_BUILD_ROOT", &self.dir).env("QEMU_TEST_ALLOW_SLOW", "1");
        Some(command)
    }

    fn environment(&self, program: &Path) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", SECONDS]).arg(program).current_dir(&self.dir);
        if let Some(library) = &self.library {
            command.env("LD_LIBRARY_PATH", library);
        }
        command
    }
}

/// Builds a kind of QEMU and these test programs. `run` has the tree to itself until it returns; then all is removed.
pub fn with<T>(
    of: QemuSeries,
    kind: Kind,
    programs: &[String],
    log: &Path,
    run: impl FnOnce(&Built) -> Result<T>,
) -> Result<T> {
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    // No build of QEMU has to wait for the tests.
    let mut bench = Bench::open_in(target().join("tests").join(of.name()), &cache, of, kind)?;
    // Functional tests import it.
    let python = bench.python(&["python3-pycotap"])?;
    let _lock = cache.lock("qemu-tests")?;
    let commits = bench.commits(log)?;
    let commit = if kind == Kind::Stock { &commits[0] } else { commits.last().context("a commit")? };
    let objects = Objects::for_tests(&bench, kind)?;
    objects.build_also(commit, programs, log)?;
    add_firmware(&cache, &objects.dir, log)?;
    let built = Built {
        dir: objects.dir.clone(),
        tree: bench.tree.clone(),
        python,
        library: kind.has_library().then(|| bench.dir.join("prefix/lib")),
    };
    let result = run(&built)?;
    remove_dir(&built.dir)?;
    Ok(result)
}

/// Puts firmware where the QEMU in this folder looks for it.
fn add_firmware(cache: &Cache, dir: &Path, log: &Path) -> Result<()> {
    let unpacked = dir.join("firmware");
    debian::unpack_debs(&Debian::open(cache, STABLE)?.fetch_debs(&FIRMWARE)?, &unpacked, log)?;
    let bundle = dir.join(BUNDLE);
    fs::create_dir_all(&bundle)?;
    for folder in FIRMWARE_FOLDERS {
        let folder = unpacked.join(folder);
        for file in fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))? {
            let file = file?;
            let link = bundle.join(file.file_name());
            // Some are links to files of other packages.
            if file.path().is_file() && fs::symlink_metadata(&link).is_err() {
                symlink(file.path(), link)?;
            }
        }
    }
    Ok(())
}
