//! Builds QEMU from a patched tree. The cache keeps the stripped binaries, ccache the objects.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail, ensure};
use vfio_fast_protocol::qemu::QemuSeries;

use super::series::Series;
use super::{Kind, fetch, target, tree};
use crate::cache::{Cache, Input, remove_dir};
use crate::debian::{self, Debian, STABLE, Source};
use crate::progress::{output, run_logged, step};
use crate::sysroot::{self, Sysroot};
use crate::{library, packages};

/// The devices of the test machines; no others are built.
const DEVICES: &str = include_str!("devices.mak");

/// What else 10.2 has to build: without it, code of the devices above has undefined symbols.
const DEVICES_10_2: &str = "CONFIG_SPDM_SOCKET=y\nCONFIG_CXL=y\nCONFIG_CXL_MEM_DEVICE=y\nCONFIG_PXB=y\n";

/// The devices of arm64 test machines, and those that their QEMU under test has.
const DEVICES_ARM64: &str = include_str!("devices-arm64.mak");
const DEVICES_ON_ARM64: &str = include_str!("devices-on-arm64.mak");

/// The devices of a series and kind.
fn devices(of: QemuSeries, kind: Kind) -> String {
    match (kind, of) {
        (Kind::EmulatorArm64, _) => DEVICES_ARM64.to_owned(),
        (Kind::OnArm64, _) => DEVICES_ON_ARM64.to_owned(),
        (_, QemuSeries::V10_0) => DEVICES.to_owned(),
        (_, QemuSeries::V10_2) => [DEVICES, DEVICES_10_2].concat(),
    }
}

/// The arguments of configure that depend on the emulated processor. KVM exists only for this machine's.
fn configure_target(kind: Kind) -> Vec<String> {
    let processor = kind.processor();
    let mut arguments = vec![
        format!("--target-list={processor}-softmmu"),
        "--without-default-features".to_owned(),
        "--without-default-devices".to_owned(),
        format!("--with-devices-{processor}=vfio-fast"),
    ];
    if kind != Kind::EmulatorArm64 {
        arguments.push("--enable-kvm".to_owned());
    }
    arguments
}

/// The features of QEMU that the test machines need. Others would add libraries to the images. `-sandbox` requires
/// seccomp.
const CONFIGURE: &[&str] = &[
    "--enable-tcg",
    "--enable-seccomp",
    "--enable-trace-backends=log",
    "--disable-docs",
    "--disable-tools",
    "--disable-guest-agent",
    "--disable-install-blobs",
    "--disable-debug-info",
    "--disable-werror",
    "--disable-download",
];

/// What a sanitized QEMU is configured with in addition. The first finding ends it. The sanitizers' libraries become part
/// of the program: what the test machines preload would come before shared ones.
const SANITIZED: &[&str] = &[
    "--enable-asan",
    "--enable-ubsan",
    "--extra-cflags=-fno-sanitize-recover=undefined",
    "--extra-ldflags=-static-libasan -static-libubsan",
];

/// The target that QEMU's own tests are made for, with all of its devices. Without KVM, they run alike everywhere.
const TESTS: &[&str] = &["--target-list=x86_64-softmmu", "--without-default-features"];

/// What a QEMU that runs on arm64 is configured with in addition. Its L1 has KVM, and without TCG it is built in half of
/// the time.
const ON_ARM64: &[&str] = &["--disable-tcg", "--host-cc=gcc"];

/// Debian's Python, even if another one comes first in PATH.
pub(super) const PYTHON: &str = "/usr/bin/python3";

/// Removes the run path, which points to the library that the binary was linked with.
const FORGET_PATH: &[&str] = &["chrpath", "--delete"];

/// The build option that the patches add.
const OPTION: &str = "vfio_fast";

/// The binary of a kind, from the cache or built now.
pub fn binary(cache: &Cache, of: QemuSeries, kind: Kind, keep: bool) -> Result<PathBuf> {
    packages::ensure(cache)?;
    let bench = Bench::open(cache, of, kind)?;
    let patches = bench.series.patches.len();
    let recipe = bench.recipe(kind, patches)?;
    let inputs: Vec<Input> = recipe.iter().map(|text| Input::Text(text)).collect();
    let entry = cache.entry(&format!("qemu-{of}-{}", kind.name()), &inputs)?;
    let dir = entry.get_or_build(|dir| {
        let _lock = cache.lock("qemu-build")?;
        step(&format!("Build QEMU {of} ({})", kind.name()), &entry.log(), |log| {
            let commits = bench.commits(log)?;
            let commit = if kind == Kind::Stock { &commits[0] } else { &commits[commits.len() - 1] };
            let objects = Objects::new(&bench, kind)?;
            objects.build(commit, log)?;
            let binary = dir.join(kind.binary());
            let strip = format!("{}strip", kind.tools());
            run_logged(Command::new(strip).arg("-o").arg(&binary).arg(objects.dir.join(kind.binary())), log)?;
            if kind.has_library() {
                // Meson records the path of the library it linked with. At run time the caller chooses the library.
                run_logged(Command::new(FORGET_PATH[0]).args(&FORGET_PATH[1..]).arg(&binary), log)?;
            }
            check_linkage(&binary, kind)?;
            bench.ensure_unchanged(kind, patches, &recipe)?;
            if keep {
                crate::progress::say(&format!("    kept: {}", objects.dir.display()));
                return Ok(());
            }
            remove_dir(&objects.dir)
        })
    })?;
    Ok(dir.join(kind.binary()))
}

/// Checks that every patch applies exactly.
pub fn check_series(cache: &Cache) -> Result<()> {
    packages::ensure(cache)?;
    let apply = |of, kind, what: &str| {
        let bench = Bench::open(cache, of, kind)?;
        let _lock = cache.lock("qemu-build")?;
        step(what, &super::log("series"), |log| bench.commits(log)).map(drop)
    };
    for of in QemuSeries::ALL {
        apply(of, Kind::On, &format!("Apply the patches of {of}"))?;
    }
    apply(QemuSeries::USUAL, Kind::Emulator, "Apply the emulator's patches")
}

/// Checks that the tree builds after each patch with the feature off and, if the option exists at that patch, on.
///
/// Results are cached: after an edit of the last patch, only one tree is built.
pub fn check_each_patch(cache: &Cache, of: QemuSeries) -> Result<()> {
    packages::ensure(cache)?;
    let bench = Bench::open(cache, of, Kind::On)?;
    let _lock = cache.lock("qemu-build")?;
    let commits = bench.commits(&super::log("series"))?;
    let mut known = 0;
    for kind in [Kind::Off, Kind::On] {
        let mut objects = None;
        for (n, commit) in commits.iter().enumerate().skip(1) {
            if kind == Kind::On && !bench.has_option(commit) {
                continue;
            }
            let recipe = bench.recipe(kind, n)?;
            let inputs: Vec<Input> = recipe.iter().map(|text| Input::Text(text)).collect();
            let entry = cache.entry(&format!("qemu-{of}-after-{n:02}-{}", kind.name()), &inputs)?;
            if entry.is_ready() {
                known += 1;
                continue;
            }
            let what = format!("Build QEMU {of} after patch {n} of {} ({})", commits.len() - 1, kind.name());
            entry.get_or_build(|dir| {
                step(&what, &entry.log(), |log| {
                    let objects = match &mut objects {
                        Some(objects) => objects,
                        none => none.insert(Objects::new(&bench, kind)?),
                    };
                    objects.build(commit, log)?;
                    fs::write(dir.join("subject"), tree::subject(&bench.tree, commit)?)?;
                    bench.ensure_unchanged(kind, n, &recipe)
                })
            })?;
        }
        if let Some(objects) = objects {
            remove_dir(&objects.dir)?;
        }
    }
    crate::progress::say(&format!("    {known} of the builds were in the cache"));
    Ok(())
}

/// The tree in which QEMU is built, separate from the working tree of the developer.
pub(super) struct Bench {
    cache: Cache,
    source: Source,
    series: Series,
    /// The packages that Python gets: meson, and what else a build needs.
    meson: Vec<PathBuf>,
    devices: String,
    /// What it is compiled against, if it is not for this machine.
    sysroot: Option<Sysroot>,
    /// The folder of the tree and of the objects beside it.
    pub(super) dir: PathBuf,
    pub(super) tree: PathBuf,
}

impl Bench {
    fn open(cache: &Cache, of: QemuSeries, kind: Kind) -> Result<Bench> {
        Self::open_in(folder(of), cache, of, kind)
    }

    /// The same in another folder, which has a tree of its own.
    pub(super) fn open_in(dir: PathBuf, cache: &Cache, of: QemuSeries, kind: Kind) -> Result<Bench> {
        Ok(Bench {
            cache: cache.clone(),
            devices: devices(of, kind),
            sysroot: (kind == Kind::OnArm64).then(|| Sysroot::prepare(cache)).transpose()?,
            source: fetch(cache, of)?,
            series: Series::open(&kind.patches(of))?,
            meson: Debian::open(cache, STABLE)?.fetch_debs(&["meson"])?,
            tree: dir.join("tree"),
            dir,
        })
    }

    /// Everything that a build with the first `patches` patches depends on.
    fn recipe(&self, kind: Kind, patches: usize) -> Result<Vec<String>> {
        let mut recipe = configure_target(kind);
        recipe.extend(CONFIGURE.iter().map(ToString::to_string));
        recipe.push(self.devices.clone());
        recipe.push(fs::read_to_string(&self.source.dsc)?);
        // Stands for the host's compiler and libraries.
        recipe.push(fs::read_to_string("/etc/debian_version").unwrap_or_default());
        if kind != Kind::Stock {
            for patch in &self.series.patches[..patches] {
                recipe.push(fs::read_to_string(patch)?);
            }
        }
        if kind == Kind::Sanitized {
            recipe.extend(SANITIZED.iter().map(ToString::to_string));
        }
        if let Some(sysroot) = &self.sysroot {
            recipe.extend(ON_ARM64.iter().map(ToString::to_string));
            recipe.push(sysroot.key());
        }
        if kind.has_library() {
            // The C interface is an input, but the code is not: an edit of the engine does not rebuild QEMU.
            recipe.extend(library::interface()?);
            recipe.push(FORGET_PATH.join(" "));
        }
        Ok(recipe)
    }

    /// Fails if inputs were edited during the build, because the result must not be cached under their old hash.
    fn ensure_unchanged(&self, kind: Kind, patches: usize, recipe: &[String]) -> Result<()> {
        ensure!(
            self.recipe(kind, patches)? == recipe,
            "the patches or the header changed during the build: run it again"
        );
        Ok(())
    }

    /// The Python of a build, which then has these packages of Debian besides meson.
    pub(super) fn python(&mut self, packages: &[&str]) -> Result<PathBuf> {
        self.meson.extend(Debian::open(&self.cache, STABLE)?.fetch_debs(packages)?);
        venv(&self.cache, &self.meson)
    }

    /// Updates the tree to the current series. Returns the commits, base first.
    pub(super) fn commits(&self, log: &Path) -> Result<Vec<String>> {
        tree::prepare(&self.source, &self.tree)?;
        tree::apply_series(&self.series, &self.tree, log)
    }

    /// Whether the build system has the option at this commit.
    fn has_option(&self, commit: &str) -> bool {
        let options = tree::file_at(&self.tree, commit, "meson_options.txt").unwrap_or_default();
        options.contains(&format!("option('{OPTION}'"))
    }
}

/// The folder in which a series is built.
pub(super) fn folder(of: QemuSeries) -> PathBuf {
    target().join("build").join(of.name())
}

pub(super) struct Objects<'a> {
    bench: &'a Bench,
    kind: Kind,
    /// Whether they are those of QEMU's own tests, which need all devices.
    tests: bool,
    pub(super) dir: PathBuf,
}

impl<'a> Objects<'a> {
    fn new(bench: &'a Bench, kind: Kind) -> Result<Objects<'a>> {
        Self::in_folder(bench, kind, false, kind.name())
    }

    /// Those of QEMU's own tests.
    pub(super) fn for_tests(bench: &'a Bench, kind: Kind) -> Result<Objects<'a>> {
        Self::in_folder(bench, kind, true, &format!("tests-{}", kind.name()))
    }

    fn in_folder(bench: &'a Bench, kind: Kind, tests: bool, name: &str) -> Result<Objects<'a>> {
        let dir = bench.dir.join(name);
        remove_dir(&dir)?;
        fs::create_dir_all(&dir)?;
        Ok(Objects { bench, kind, tests, dir })
    }

    /// Builds the binary from the tree at a commit, and runs configure first if needed.
    fn build(&self, commit: &str, log: &Path) -> Result<()> {
        self.build_also(commit, &[], log)
    }

    /// Builds further programs as well.
    pub(super) fn build_also(&self, commit: &str, programs: &[String], log: &Path) -> Result<()> {
        tree::checkout(&self.bench.tree, commit, log)?;
        let devices = format!("configs/devices/{}-softmmu/vfio-fast.mak", self.kind.processor());
        fs::write(self.bench.tree.join(devices), &self.bench.devices)?;
        if self.kind.has_library() && !self.bench.has_option(commit) {
            bail!("the series adds no option `{OPTION}` to meson_options.txt: the feature cannot be enabled");
        }
        if !self.dir.join("build.ninja").exists() {
            self.configure(log)?;
        }
        run_logged(self.command("ninja").arg(self.kind.binary()).args(programs), log)
    }

    fn configure(&self, log: &Path) -> Result<()> {
        let python = venv(&self.bench.cache, &self.bench.meson)?;
        let mut command = self.command("../tree/configure");
        if self.tests {
            command.args(TESTS);
        } else {
            command.args(configure_target(self.kind));
        }
        command.args(CONFIGURE).arg(format!("--python={}", python.display()));
        if self.kind == Kind::Sanitized {
            command.args(SANITIZED);
        }
        if let Some(sysroot) = &self.bench.sysroot {
            command.args(ON_ARM64).arg(format!("--cross-prefix={}", sysroot::TOOLS));
            command.arg(format!("--cc=ccache {}gcc {}", sysroot::TOOLS, sysroot.option()));
            command.arg(format!("--extra-ldflags={}", sysroot.link_option()));
            command.env("PKG_CONFIG", "pkg-config").env("PKG_CONFIG_LIBDIR", sysroot.pkg_config());
        } else {
            command.arg("--cc=ccache gcc");
        }
        if self.kind.has_library() {
            let prefix = self.dir.with_file_name("prefix");
            match &self.bench.sysroot {
                Some(sysroot) => library::into_arm64(sysroot, &prefix, log)?,
                None => library::into(&prefix, log)?,
            }
            command.arg("--enable-vfio-fast").env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
        }
        let result = run_logged(&mut command, log);
        if result.is_err()
            && let Ok(details) = fs::read(self.dir.join("meson-logs/meson-log.txt"))
        {
            let mut file = OpenOptions::new().append(true).open(log)?;
            file.write_all(&details)?;
        }
        result?;
        // In a git tree, configure enables -Werror in a file that meson reads again when a patch changes the build
        // system, in spite of --disable-werror. With a compiler newer than this QEMU, the build would fail.
        let machine = self.dir.join("config-meson.cross");
        let text = fs::read_to_string(&machine)?;
        fs::write(&machine, text.replace("werror = true", "werror = false"))?;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.dir);
        self.bench.cache.share_objects(&mut command, &target());
        command
    }
}

/// A Python with Debian's current meson, because the host's own can be too old for QEMU.
fn venv(cache: &Cache, meson: &[PathBuf]) -> Result<PathBuf> {
    let version = output(Command::new(PYTHON).arg("--version"))?;
    let mut inputs = vec![Input::Text(&version)];
    inputs.extend(meson.iter().map(|deb| Input::File(deb)));
    let entry = cache.entry("meson-venv", &inputs)?;
    let log = entry.log();
    let dir = entry.get_or_build(|dir| {
        run_logged(Command::new(PYTHON).args(["-m", "venv", "--without-pip"]).arg(dir.join("venv")), &log)?;
        let unpacked = dir.join("unpacked");
        debian::unpack_debs(meson, &unpacked, &log)?;
        let script = "import sysconfig; print(sysconfig.get_paths()['purelib'])";
        let packages = output(Command::new(dir.join("venv/bin/python3")).args(["-c", script]))?;
        for item in fs::read_dir(unpacked.join("usr/lib/python3/dist-packages"))? {
            let item = item?;
            fs::rename(item.path(), Path::new(packages.trim()).join(item.file_name()))?;
        }
        remove_dir(&unpacked)
    })?;
    Ok(dir.join("venv/bin/python3"))
}

/// Checks that the binary needs the library exactly if the feature is on, and that it has no run path.
fn check_linkage(binary: &Path, kind: Kind) -> Result<()> {
    let dynamic = output(Command::new("readelf").arg("--dynamic").arg(binary))?;
    let has = |tag: &str, text: &str| dynamic.lines().any(|line| line.contains(tag) && line.contains(text));
    let needs = has("(NEEDED)", "libvfio_fast.so");
    ensure!(
        needs == kind.has_library(),
        "QEMU ({}): whether it needs libvfio_fast.so is {needs}",
        kind.name()
    );
    ensure!(
        !has("(RUNPATH)", "") && !has("(RPATH)", ""),
        "QEMU ({}) has a library path built in",
        kind.name()
    );
    Ok(())
}
