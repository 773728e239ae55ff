//! The parts of an L1 with arm64 processors: its emulator, Debian's kernels, programs, and what a QEMU in it needs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vfio_fast_assets::cache::Cache;
use vfio_fast_assets::debian::{Debian, STABLE};
use vfio_fast_assets::image::{self, Guest};
use vfio_fast_assets::qemu::{self, Kind};
use vfio_fast_assets::sysroot::Sysroot;
use vfio_fast_assets::target::Target;
use vfio_fast_assets::{library, progress};
use vfio_fast_protocol::host::{Host, Kernel};
use vfio_fast_protocol::qemu::QemuSeries;
use vfio_fast_protocol::spec::{Program, ScenarioSpec};

/// What differs between hosts.
#[derive(Debug)]
struct OfHost {
    host: Host,
    guest: Guest,
    /// The conformance tests, if a scenario needs them.
    conformance: Option<PathBuf>,
}

/// What a QEMU under test needs besides itself.
#[derive(Debug)]
pub struct ForQemu {
    /// The ioctl witness.
    pub witness: PathBuf,
    /// The library that it loads.
    pub library: PathBuf,
    /// The libraries of Debian's.
    pub sysroot: Sysroot,
}

/// The parts for the arm64 hosts that the scenarios need, and for all of them the emulator and PID 1.
#[derive(Debug)]
pub struct Arm64 {
    pub emulator: PathBuf,
    pub agent: PathBuf,
    /// If a scenario runs a QEMU.
    pub for_qemu: Option<ForQemu>,
    hosts: Vec<OfHost>,
}

impl Arm64 {
    /// Fetches and builds the parts, if a scenario needs them.
    pub fn prepare(cache: &Cache, run: &Path, specs: &[ScenarioSpec]) -> Result<Option<Self>> {
        let wanted = |host: &Host| specs.iter().any(|spec| spec.host == *host);
        let hosts: Vec<Host> = Host::ARM64.into_iter().filter(wanted).collect();
        if hosts.is_empty() {
            return Ok(None);
        }
        let debian = Debian::open_for(cache, STABLE, "arm64")?;
        let build = |what: &str, log: &str, build: &dyn Fn(&Path) -> Result<PathBuf>| {
            progress::step(what, &run.join(log), build)
        };
        let agent = build("Build the agent for arm64", "agent-arm64.log", &|log| {
            image::build_agent(Target::Arm64, log)
        })?;
        let runs = |host: Host, program: &Program| {
            specs.iter().any(|spec| spec.host == host && spec.program == *program)
        };
        let of = |host: Host| {
            let guest = Guest::prepare_arm64(cache, &debian, flavour(host.kernel))?;
            let kib = host.page_kib();
            let what = format!("Build the conformance tests for arm64, pages of {kib} KiB");
            let conformance = runs(host, &Program::Conformance).then(|| {
                build(&what, &format!("conformance-arm64-{kib}k.log"), &|log| {
                    image::build_conformance(Target::Arm64, kib, log)
                })
            });
            Ok(OfHost { host, guest, conformance: conformance.transpose()? })
        };
        let needs_qemu = hosts.iter().any(|host| runs(*host, &Program::Qemu));
        let for_qemu = needs_qemu.then(|| ForQemu::build(cache, run)).transpose()?;
        let hosts = hosts.into_iter().map(of).collect::<Result<_>>()?;
        let emulator = qemu::built(QemuSeries::USUAL, Kind::EmulatorArm64)?;
        Ok(Some(Self { emulator, agent, for_qemu, hosts }))
    }

    pub fn guest(&self, host: Host) -> Result<&Guest> {
        self.of(host).map(|of| &of.guest).with_context(|| format!("no kernel was fetched for {host}"))
    }

    pub fn conformance(&self, host: Host) -> Option<&PathBuf> {
        self.of(host).and_then(|of| of.conformance.as_ref())
    }

    fn of(&self, host: Host) -> Option<&OfHost> {
        self.hosts.iter().find(|of| of.host == host)
    }
}

impl ForQemu {
    fn build(cache: &Cache, run: &Path) -> Result<Self> {
        let sysroot = Sysroot::prepare(cache)?;
        let witness = progress::step("Build the witness for arm64", &run.join("witness-arm64.log"), |log| {
            image::build_witness_arm64(&sysroot, log)
        })?;
        let prefix = run.join("prefix-arm64");
        progress::step("Build the library for arm64", &run.join("library-arm64.log"), |log| {
            library::into_arm64(&sysroot, &prefix, log)
        })?;
        Ok(Self { witness, library: prefix.join("lib").join(library::soname()), sysroot })
    }
}

/// How the name of Debian's kernel ends.
fn flavour(kernel: Kernel) -> &'static str {
    match kernel {
        Kernel::Debian | Kernel::Newest => "arm64",
        Kernel::Debian16k => "arm64-16k",
    }
}
