//! What the test machines boot: an initrd written file by file, and the kernel modules in it.

mod cpio;
mod modules;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

pub use cpio::Cpio;

use crate::cache::{Cache, Input};
use crate::progress::{self, run_logged};

const FIRMWARE: [&str; 3] = ["seabios", "qemu-system-data", "ovmf"];
/// Firmware files QEMU asks for when it boots a kernel with no display.
const FIRMWARE_FILES: [&str; 3] =
    ["usr/share/seabios/bios-256k.bin", "usr/share/qemu/linuxboot_dma.bin", "usr/share/qemu/kvmvapic.bin"];
/// The same for L2 with OVMF.
const OVMF_FILES: [&str; 2] = ["usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd"];
const L1_MODULES: [&str; 4] = ["vfio_iommu_type1", "vfio_pci", "kvm_amd", "kvm_intel"];
const L2_MODULES: [&str; 2] = ["nvme", "virtio_mem"];
/// Names the layout of [`Guest`] in the cache: another layout, another entry.
const LAYOUT: &str = "guest 3";

/// A kernel, its modules unpacked and in loading order, and firmware: from Debian, ready to boot.
#[derive(Clone, Debug)]
pub struct Guest {
    dir: PathBuf,
    /// What L1 boots instead of Debian's kernel: one that needs no modules.
    own: Option<PathBuf>,
}

/// Everything L1 is booted with that is not Debian's.
#[derive(Debug)]
pub struct Payload<'a> {
    /// The agent, linked statically.
    pub agent: &'a Path,
    /// Whether L2 boots with OVMF, which is large.
    pub ovmf: bool,
    /// The QEMU under test; none for a machine that runs none.
    pub qemu: Option<&'a Path>,
    /// Libraries to lie in `/vft/lib`.
    pub libraries: &'a [PathBuf],
    /// Further programs to lie in `/vft`, linked statically.
    pub programs: &'a [PathBuf],
    /// The job, as JSON.
    pub job: &'a [u8],
}

impl Guest {
    /// Fetches and unpacks what Debian provides, or takes it from the cache.
    pub fn prepare(cache: &Cache, debian: &crate::debian::Debian) -> Result<Self> {
        let mut debs = debian.fetch_debs(&FIRMWARE)?;
        debs.push(debian.fetch_kernel()?.path);
        Self::from_debs(cache, &debs)
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
                for (machine, wanted) in [("l1", &L1_MODULES[..]), ("l2", &L2_MODULES[..])] {
                    modules::unpack(&debian.join("usr/lib/modules"), wanted, &dir.join(machine))?;
                }
                crate::cache::remove_dir(&debian)
            })
        })?;
        Ok(Self { dir, own: None })
    }

    /// The same, but for L1's kernel: this one, which has everything built in.
    pub fn with_kernel(&self, kernel: PathBuf) -> Self {
        Self { own: Some(kernel), ..self.clone() }
    }

    /// The kernel of L1.
    pub fn kernel(&self) -> PathBuf {
        self.own.clone().unwrap_or_else(|| self.l2_kernel())
    }

    fn l2_kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The folders QEMU finds firmware in, on this machine.
    pub fn firmware(&self) -> [PathBuf; 2] {
        ["usr/share/seabios", "usr/share/qemu"].map(|path| self.dir.join("firmware").join(path))
    }

    /// Writes the initrd of L1, which carries that of L2.
    pub fn write_initrd(&self, payload: &Payload, to: &Path) -> Result<()> {
        let mut cpio = self.machine((self.own.is_none()).then_some("l1"), payload.agent)?;
        cpio.file("vft/job.json", 0o644, payload.job);
        cpio.file("vft/l2.cpio", 0o644, &self.machine(Some("l2"), payload.agent)?.finish());
        cpio.copy("vft/vmlinuz", 0o644, &self.l2_kernel())?;
        let ovmf: &[&str] = if payload.ovmf { &OVMF_FILES } else { &[] };
        for file in FIRMWARE_FILES.iter().chain(ovmf) {
            cpio.copy(file, 0o644, &self.dir.join("firmware").join(file))?;
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
            for library in shared_libraries(qemu, payload.libraries)? {
                let path = library.to_string_lossy();
                cpio.copy(path.trim_start_matches('/'), 0o755, &library)?;
            }
        }
        fs::write(to, cpio.finish()).with_context(|| format!("Cannot write {}", to.display()))
    }

    /// What both machines have: the agent as init, device nodes for its first moments, and the modules from that
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

/// The libraries of this machine that a program needs, those in `own` left out.
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

/// What the machines' programs are compiled for. Named, so that it is not what build scripts run on.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the agent, linked statically: L2 has no library at all.
pub fn build_agent(log: &Path) -> Result<PathBuf> {
    let mut command = cargo_static("build", "vfio-fast-agent");
    command
        .arg("--release")
        // Built in seconds; the library's release profile takes a minute and a half for the same.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "none");
    run_logged(&mut command, log)?;
    Ok(static_target().join(TARGET).join("release/vfio-fast-agent"))
}

/// Builds the conformance tests, linked statically, as the program `conformance`.
pub fn build_conformance(log: &Path) -> Result<PathBuf> {
    let build = || {
        let mut command = cargo_static("test", "vfio-fast-engine");
        command.args(["--test", "conformance", "--no-run"]).env("CARGO_PROFILE_DEV_DEBUG", "none");
        command
    };
    build_target("conformance", build, log)
}

/// Builds one of the measuring programs, linked statically.
pub fn build_measure(name: &str, log: &Path) -> Result<PathBuf> {
    let build = || {
        let mut command = cargo_static("build", "vfio-fast-measure");
        command
            .args(["--release", "--bin", name])
            // What takes time is in the kernel: inlining across crates does not pay for the minute it takes.
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "none");
        command
    };
    build_target(name, build, log)
}

/// Builds a test or program of that name as a program of that name.
fn build_target(name: &str, build: impl Fn() -> Command, log: &Path) -> Result<PathBuf> {
    run_logged(&mut build(), log)?;
    // The second time there is nothing left to do but to say where it is.
    let messages = progress::output(build().args(["--quiet", "--message-format", "json"]))?;
    let built =
        executable(&messages, name).with_context(|| format!("cargo names no {name} that it built"))?;
    let program = static_target().join(name);
    fs::copy(&built, &program).with_context(|| format!("Cannot copy {}", built.display()))?;
    Ok(program)
}

/// The executable of the target of that name among cargo's messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_wanted = message["target"]["name"] == name;
        message["executable"].as_str().filter(|_| is_wanted).map(PathBuf::from)
    })
}

fn cargo_static(verb: &str, package: &str) -> Command {
    let mut command = Command::new(crate::paths::cargo());
    command
        .current_dir(crate::paths::root())
        .args([verb, "--locked", "--package", package, "--target", TARGET])
        .arg("--target-dir")
        .arg(static_target())
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
    command
}

fn static_target() -> PathBuf {
    crate::paths::target().join("agent")
}

/// Builds the ioctl witness, which is preloaded into QEMU.
pub fn build_witness(log: &Path) -> Result<PathBuf> {
    let source = crate::paths::root().join("images/witness/witness.c");
    let folder = crate::paths::target().join("witness");
    fs::create_dir_all(&folder)?;
    let library = folder.join("libwitness.so");
    let flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"];
    run_logged(Command::new("cc").args(flags).arg("-o").arg(&library).arg(source), log)?;
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
