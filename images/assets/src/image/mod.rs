//! The files the test machines boot from: kernel, modules, firmware and a generated initrd.

mod cpio;
mod modules;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

pub use cpio::Cpio;

use crate::cache::{Cache, Input};
use crate::progress::{self, run_logged};
use crate::sysroot::{self, Sysroot};
use crate::target::{self, Target};

const FIRMWARE: [&str; 4] = ["seabios", "qemu-system-data", "ovmf", "ipxe-qemu"];
/// Firmware files that QEMU loads to boot a kernel without a display.
const FIRMWARE_FILES: [&str; 3] =
    ["usr/share/seabios/bios-256k.bin", "usr/share/qemu/linuxboot_dma.bin", "usr/share/qemu/kvmvapic.bin"];
/// Firmware files of an L2 that boots with OVMF, and a network card's ROM, for SeaBIOS as well.
const OVMF_FILES: [&str; 3] =
    ["usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd", "usr/share/qemu/efi-e1000e.rom"];
const L1_MODULES: [&str; 4] = ["vfio_iommu_type1", "vfio_pci", "kvm_amd", "kvm_intel"];
/// Those of an L1 that is a Debian system: its disk, and the driver that gives up the disk under test.
const DEBIAN_MODULES: [&str; 5] = ["crc32c_generic", "ext4", "overlay", "virtio_blk", "nvme"];
const ARM64_MODULES: [&str; 2] = ["vfio_iommu_type1", "vfio_pci"];
const ARM64_L2_MODULES: [&str; 1] = ["nvme"];
const L2_MODULES: [&str; 2] = ["nvme", "virtio_mem"];
/// Version of the layout of [`Guest`] in the cache. Change it to invalidate old entries.
const LAYOUT: &str = "guest 6";
/// The example of the Rust crate.
const EXAMPLE: &str = "guest_memory";
/// The examples for C programs.
const C_EXAMPLES: [&str; 2] = ["nvme_read", "many_pages"];

/// A kernel from Debian, with its modules unpacked in loading order, and firmware.
#[derive(Clone, Debug)]
pub struct Guest {
    dir: PathBuf,
    /// A kernel that L1 boots instead of Debian's; it needs no modules.
    own: Option<PathBuf>,
    /// What its programs are compiled for.
    target: Target,
}

/// The files in L1's initrd that do not come from Debian.
#[derive(Debug)]
pub struct Payload<'a> {
    /// The agent, linked statically.
    pub agent: &'a Path,
    /// Whether to include OVMF, which is large.
    pub ovmf: bool,
    /// Whether a disk has a Debian system, which needs more modules.
    pub debian: bool,
    /// The QEMU under test, if any.
    pub qemu: Option<&'a Path>,
    /// Libraries, and programs that need libraries of this machine, to install in `/vft/lib`.
    pub libraries: &'a [PathBuf],
    /// Where the libraries are that they need, if not those of this machine.
    pub sysroot: Option<&'a Sysroot>,
    /// Statically linked programs, and other files, to install in `/vft`.
    pub programs: &'a [PathBuf],
    /// The job, as JSON.
    pub job: &'a [u8],
}

impl Guest {
    /// Fetches and unpacks the files from Debian, or takes them from the cache.
    pub fn prepare(cache: &Cache, debian: &crate::debian::Debian) -> Result<Self> {
        let mut debs = debian.fetch_debs(&FIRMWARE)?;
        debs.push(debian.fetch_kernel("amd64")?.path);
        Self::from_debs(cache, &debs)
    }

    /// The same for arm64, which needs no firmware, with the kernel of that flavour. `debian` has the packages for arm64.
    pub fn prepare_arm64(cache: &Cache, debian: &crate::debian::Debian, flavour: &str) -> Result<Self> {
        let kernel = debian.fetch_kernel(flavour)?.path;
        let entry = cache.entry("guest-arm64", &[Input::Text(LAYOUT), Input::File(&kernel)])?;
        let dir = entry.get_or_build(|dir| {
            progress::step(&format!("Unpack the {flavour} kernel"), &entry.log(), |log| {
                let debian = dir.join("debian");
                crate::debian::unpack_debs(std::slice::from_ref(&kernel), &debian, log)?;
                fs::copy(modules::only_entry(&debian.join("boot"), "vmlinuz-")?, dir.join("vmlinuz"))?;
                for (machine, wanted) in [("l1", &ARM64_MODULES[..]), ("l2", &ARM64_L2_MODULES)] {
                    modules::unpack(&debian.join("usr/lib/modules"), wanted, &dir.join(machine))?;
                }
                crate::cache::remove_dir(&debian)
            })
        })?;
        Ok(Self { dir, own: None, target: Target::Arm64 })
    }

    fn from_debs(cache: &Cache, debs: &[PathBuf]) -> Result<Self> {
        let mut inputs = vec![Input::Text(LAYOUT)];
        inputs.extend(debs.iter().map(|deb| Input::File(deb)));
        let entry = cache.entry("guest", &inputs)?;
        let dir = entry.get_or_build(|dir| {
            progress::step("Unpack the guests' kernel and firmware", &entry.log(), |log| {
                let debian = dir.join("debian");
                crate::debian::unpack_debs(debs, &debian, log)?;
                for file in FIRMWARE_FILES.iter().chain(&OVMF_FILES) {
                    let from = debian.join(file);
                    let to = dir.join("firmware").join(file);
                    fs::create_dir_all(to.parent().context("a firmware file has a folder")?)?;
                    fs::copy(&from, to).with_context(|| format!("Cannot copy {}", from.display()))?;
                }
                let kernel = modules::only_entry(&debian.join("boot"), "vmlinuz-")?;
                fs::copy(&kernel, dir.join("vmlinuz"))?;
                let debian_l1 = [&L1_MODULES[..], &DEBIAN_MODULES].concat();
                for (machine, wanted) in
                    [("l1", &L1_MODULES[..]), ("l1-debian", &debian_l1), ("l2", &L2_MODULES)]
                {
                    modules::unpack(&debian.join("usr/lib/modules"), wanted, &dir.join(machine))?;
                }
                crate::cache::remove_dir(&debian)
            })
        })?;
        Ok(Self { dir, own: None, target: Target::X86 })
    }

    /// The same guest with another kernel for L1, which must have all drivers built in.
    pub fn with_kernel(&self, kernel: PathBuf) -> Self {
        Self { own: Some(kernel), ..self.clone() }
    }

    pub fn kernel(&self) -> PathBuf {
        self.own.clone().unwrap_or_else(|| self.l2_kernel())
    }

    fn l2_kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The folders in which QEMU on this machine finds firmware.
    pub fn firmware(&self) -> [PathBuf; 2] {
        ["usr/share/seabios", "usr/share/qemu"].map(|path| self.dir.join("firmware").join(path))
    }

    /// Writes the initrd of L1, which contains that of L2.
    pub fn write_initrd(&self, payload: &Payload, to: &Path) -> Result<()> {
        let modules = if payload.debian { "l1-debian" } else { "l1" };
        let mut cpio = self.machine(self.own.is_none().then_some(modules), payload.agent)?;
        cpio.file("vft/job.json", 0o644, payload.job);
        if self.target == Target::X86 || payload.qemu.is_some() {
            self.add_l2(&mut cpio, payload)?;
        }
        let folders = [("vft/lib", payload.libraries), ("vft", payload.programs)];
        for (folder, file) in
            folders.iter().flat_map(|(folder, files)| files.iter().map(move |f| (folder, f)))
        {
            let name = file.file_name().context("a program has a file name")?.to_string_lossy();
            cpio.copy(&format!("{folder}/{name}"), 0o755, file)?;
        }
        if let Some(qemu) = payload.qemu {
            cpio.copy("vft/qemu", 0o755, qemu)?;
        }
        for (library, path) in needed(payload)? {
            cpio.copy(path.trim_start_matches('/'), 0o755, &library)?;
        }
        fs::write(to, cpio.finish()).with_context(|| format!("Cannot write {}", to.display()))
    }

    /// What an L2 boots from.
    fn add_l2(&self, cpio: &mut Cpio, payload: &Payload) -> Result<()> {
        cpio.file("vft/l2.cpio", 0o644, &self.machine(Some("l2"), payload.agent)?.finish());
        cpio.copy("vft/vmlinuz", 0o644, &self.l2_kernel())?;
        if self.target == Target::Arm64 {
            return Ok(());
        }
        let ovmf: &[&str] = if payload.ovmf { &OVMF_FILES } else { &[] };
        for file in FIRMWARE_FILES.iter().chain(ovmf) {
            cpio.copy(file, 0o644, &self.dir.join("firmware").join(file))?;
        }
        Ok(())
    }

    /// The contents common to both machines: the agent as init, the device nodes it needs first, and the modules of a
    /// folder.
    fn machine(&self, modules: Option<&str>, agent: &Path) -> Result<Cpio> {
        let mut cpio = Cpio::default();
        cpio.node("dev/console", 5, 1);
        cpio.node("dev/null", 1, 3);
        cpio.copy("init", 0o755, agent)?;
        let mut list = String::new();
        if let Some(folder) = modules {
            let from = self.dir.join(folder);
            for name in fs::read_to_string(from.join("order"))?.lines() {
                cpio.copy(&format!("vft/modules/{name}"), 0o644, &from.join(name))?;
                list += &format!("/vft/modules/{name}\n");
            }
        }
        cpio.file("vft/modules.list", 0o644, list.as_bytes());
        Ok(cpio)
    }
}

/// The libraries that the dynamically linked programs need, and where they belong in L1.
fn needed(payload: &Payload) -> Result<Vec<(PathBuf, String)>> {
    let programs: Vec<&Path> =
        payload.qemu.into_iter().chain(payload.libraries.iter().map(PathBuf::as_path)).collect();
    if let Some(sysroot) = payload.sysroot {
        return sysroot.needed_by(&programs, payload.libraries);
    }
    let mut needed = BTreeSet::new();
    for program in programs {
        needed.extend(shared_libraries(program, payload.libraries)?);
    }
    Ok(needed.into_iter().map(|path| (path.clone(), path.to_string_lossy().into_owned())).collect())
}

/// The libraries of this machine that a program needs, except those in `own`.
fn shared_libraries(program: &Path, own: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let folders: Vec<_> = own.iter().filter_map(|path| path.parent()).map(Path::as_os_str).collect();
    let mut ldd = Command::new("ldd");
    ldd.arg(program).env("LD_LIBRARY_PATH", folders.join(std::ffi::OsStr::new(":")));
    let text = progress::output(&mut ldd)?;
    let mut found = Vec::new();
    for line in text.lines() {
        anyhow::ensure!(!line.contains("not found"), "{}: {}", program.display(), line.trim());
        // `libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x...)` or `/lib64/ld-linux... (0x...)`.
        let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
        let path = path.split(" (").next().unwrap_or_default();
        let is_own = own.iter().any(|own| own.file_name() == Path::new(path).file_name());
        if path.starts_with('/') && !is_own {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

/// The target of the programs in the machines with x86 processors.
pub const TARGET: &str = Target::X86.triple();

/// Builds the agent, linked statically because L2 has no libraries.
pub fn build_agent(target: Target, log: &Path) -> Result<PathBuf> {
    if target != Target::X86 {
        target::add(target.triple(), log)?;
    }
    let mut command = cargo_static("build", "vfio-fast-agent", target);
    command
        .arg("--release")
        // These settings build in seconds; the library's release profile needs a minute and a half.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "none");
    run_logged(&mut command, log)?;
    Ok(static_target().join(target.triple()).join("release/vfio-fast-agent"))
}

/// Builds the conformance tests as the program `conformance`, linked statically, for kernels with pages of that many KiB.
pub fn build_conformance(target: Target, page_kib: u32, log: &Path) -> Result<PathBuf> {
    let build = || {
        let mut command = cargo_static("test", "vfio-fast-engine", target);
        command.args(["--test", "conformance", "--no-run"]).env("CARGO_PROFILE_DEV_DEBUG", "none");
        command.env("VFIO_FAST_PAGE_KIB", page_kib.to_string());
        command
    };
    let folder = static_target().join(target.triple()).join(format!("{page_kib}k"));
    build_target("conformance", build, &folder, log)
}

/// Builds the same as the program `conformance-preloaded`, linked dynamically: into a static program nothing can be
/// preloaded.
pub fn build_preloaded_conformance(log: &Path) -> Result<PathBuf> {
    let folder = crate::paths::target().join("preloaded");
    let build = || {
        let mut command = Command::new(crate::paths::cargo());
        command
            .current_dir(crate::paths::root())
            .args(["test", "--locked", "--package", "vfio-fast-engine", "--test", "conformance", "--no-run"])
            .arg("--target-dir")
            .arg(&folder)
            .env("CARGO_PROFILE_DEV_DEBUG", "none");
        command
    };
    run_logged(&mut build(), log)?;
    let messages = progress::output(build().args(["--quiet", "--message-format", "json"]))?;
    let built = executable(&messages, "conformance").context("cargo reports no executable of conformance")?;
    let program = folder.join("conformance-preloaded");
    fs::copy(&built, &program).with_context(|| format!("Cannot copy {}", built.display()))?;
    Ok(program)
}

/// Builds the example of the Rust crate, linked statically.
pub fn build_example(log: &Path) -> Result<PathBuf> {
    let build = || {
        let mut command = cargo_static("build", "vfio-fast-dma", Target::X86);
        command.args(["--example", EXAMPLE]).env("CARGO_PROFILE_DEV_DEBUG", "none");
        command
    };
    build_target(EXAMPLE, build, &static_target(), log)
}

/// Builds the examples for C programs against the library below `prefix`.
pub fn build_c_examples(prefix: &Path, log: &Path) -> Result<Vec<PathBuf>> {
    let source = crate::paths::root().join("ffi/examples");
    let folder = crate::paths::target().join("c-examples");
    fs::create_dir_all(&folder)?;
    progress::step("Build the examples for C programs", log, |log| {
        let build = |name: &&str| {
            let program = folder.join(name);
            let mut command = Command::new("cc");
            command.args(["-O2", "-Wall", "-Wextra", "-Werror"]).arg("-I").arg(prefix.join("include"));
            command.arg("-o").arg(&program).arg(source.join(name).with_extension("c"));
            command.arg("-L").arg(prefix.join("lib")).arg("-lvfio_fast");
            run_logged(&mut command, log)?;
            Ok(program)
        };
        C_EXAMPLES.iter().map(build).collect()
    })
}

/// Builds one of the measuring programs, linked statically.
pub fn build_measure(name: &str, log: &Path) -> Result<PathBuf> {
    let build = || {
        let mut command = cargo_static("build", "vfio-fast-measure", Target::X86);
        command
            .args(["--release", "--bin", name])
            // Most of the time is spent in the kernel, so LTO would not be worth the minute it takes.
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "none");
        command
    };
    build_target(name, build, &static_target(), log)
}

/// Builds the test or program `name`, and copies it to a file of that name in the folder.
fn build_target(name: &str, build: impl Fn() -> Command, folder: &Path, log: &Path) -> Result<PathBuf> {
    run_logged(&mut build(), log)?;
    // A second, immediate run prints the path of the executable.
    let messages = progress::output(build().args(["--quiet", "--message-format", "json"]))?;
    let built =
        executable(&messages, name).with_context(|| format!("cargo reports no executable of {name}"))?;
    let program = folder.join(name);
    fs::create_dir_all(folder)?;
    fs::copy(&built, &program).with_context(|| format!("Cannot copy {}", built.display()))?;
    Ok(program)
}

/// The executable of the target `name` according to cargo's messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_wanted = message["target"]["name"] == name;
        message["executable"].as_str().filter(|_| is_wanted).map(PathBuf::from)
    })
}

/// Cargo for a program of the machines. With an explicit target, RUSTFLAGS do not apply to build scripts.
fn cargo_static(verb: &str, package: &str, target: Target) -> Command {
    let mut command = Command::new(crate::paths::cargo());
    command
        .current_dir(crate::paths::root())
        .args([verb, "--locked", "--package", package, "--target", target.triple()])
        .arg("--target-dir")
        .arg(static_target())
        .envs(target.variables().iter().copied())
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
    command
}

fn static_target() -> PathBuf {
    crate::paths::target().join("agent")
}

/// Builds the ioctl witness, which is preloaded into QEMU.
pub fn build_witness(log: &Path) -> Result<PathBuf> {
    compile_witness(Command::new("cc"), "witness", log)
}

/// The same for arm64.
pub fn build_witness_arm64(sysroot: &Sysroot, log: &Path) -> Result<PathBuf> {
    let mut compiler = Command::new(format!("{}gcc", sysroot::TOOLS));
    compiler.args([sysroot.option(), sysroot.link_option()]);
    compile_witness(compiler, "witness-arm64", log)
}

fn compile_witness(mut compiler: Command, folder: &str, log: &Path) -> Result<PathBuf> {
    let source = crate::paths::root().join("images/witness/witness.c");
    let folder = crate::paths::target().join(folder);
    fs::create_dir_all(&folder)?;
    let library = folder.join("libwitness.so");
    let flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"];
    run_logged(compiler.args(flags).arg("-o").arg(&library).arg(source), log)?;
    Ok(library)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_names_what_it_built() {
        let messages = "{\"target\":{\"name\":\"build-script-build\"},\"executable\":\"/a\"}\n\
                        {\"target\":{\"name\":\"conformance\"},\"executable\":null}\n\
                        {\"target\":{\"name\":\"conformance\"},\"executable\":\"/b\"}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages, "conformance"), Some("/b".into()));
        assert_eq!(executable(messages, "other"), None);
    }
}
