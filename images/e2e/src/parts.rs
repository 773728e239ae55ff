//! The parts of the test machines, fetched and built as far as the scenarios need them.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, anyhow};
use vfio_fast_assets::cache::Cache;
use vfio_fast_assets::debian::{Debian, STABLE};
use vfio_fast_assets::image::{self, Guest};
use vfio_fast_assets::qemu::{self, Kind};
use vfio_fast_assets::sysroot::Sysroot;
use vfio_fast_assets::target::Target;
use vfio_fast_assets::{apparmor, debian_host, kernel, kernel_tests, library, packages, progress};
use vfio_fast_protocol::host::{Host, Kernel};
use vfio_fast_protocol::job::Mode;
use vfio_fast_protocol::qemu::QemuSeries;
use vfio_fast_protocol::spec::{Program, ScenarioSpec};

use super::arm64::{Arm64, ForQemu};

/// The parts of the test machines.
#[derive(Debug)]
pub struct Parts {
    /// Kernel, modules and firmware.
    pub guest: Guest,
    /// The same with the newest kernel for L1, if a scenario needs it.
    pub newest: Option<Guest>,
    /// The same and more for arm64 hosts, if a scenario needs them.
    arm64: Option<Arm64>,
    /// The QEMU that runs L1.
    pub emulator: PathBuf,
    /// PID 1 of both machines.
    pub agent: PathBuf,
    /// The ioctl witness.
    witness: PathBuf,
    /// The library that patched QEMU loads.
    library: PathBuf,
    /// The QEMUs under test that the scenarios need.
    under_test: Vec<(QemuSeries, Kind, PathBuf)>,
    /// The conformance tests, if a scenario needs them.
    conformance: Option<PathBuf>,
    /// The example of the Rust crate, if a scenario needs it.
    pub example: Option<PathBuf>,
    /// The examples for C programs, if a scenario needs them.
    c_examples: Vec<PathBuf>,
    /// vfio-fast-run and what it preloads, if a scenario needs them, and conformance tests that it can be preloaded into.
    preload: Vec<PathBuf>,
    /// The measuring program, if a scenario needs one.
    pub bench: Option<PathBuf>,
    /// AppArmor profiles, if a scenario needs them.
    pub profiles: Vec<PathBuf>,
    /// The image of a Debian system, if a scenario needs it.
    pub debian: Option<PathBuf>,
}

impl Parts {
    /// Fetches and builds the parts that these scenarios need. Independent builds run concurrently, the longest
    /// first.
    pub fn prepare(cache: &Cache, run: &Path, specs: &[ScenarioSpec]) -> Result<Self> {
        packages::ensure(cache)?;
        // Before the threads start, so that the index is fetched only once.
        let debian = Debian::open(cache, STABLE)?;
        let needed = under_test(specs);
        let needs_newest = specs.iter().any(|spec| spec.host.kernel == Kernel::Newest);
        let (mut emulator, mut under_test, mut newest, mut rest) = (None, Vec::new(), None, None);
        let first_error = Mutex::new(None);
        let keep = |result: Result<()>| {
            if let Err(error) = result {
                first_error.lock().expect("no thread panics with it").get_or_insert(error);
            }
        };
        thread::scope(|scope| {
            if needs_newest {
                scope.spawn(|| keep(kernel::built().map(|kernel| newest = Some(kernel))));
            }
            scope.spawn(|| {
                keep((|| {
                    emulator = Some(qemu::built(QemuSeries::USUAL, Kind::Emulator)?);
                    for &(series, kind) in &needed {
                        under_test.push((series, kind, qemu::built(series, kind)?));
                    }
                    Ok(())
                })());
            });
            keep(Rest::build(cache, &debian, run, specs).map(|built| rest = Some(built)));
        });
        if let Some(error) = first_error.into_inner().map_err(|_| anyhow!("a thread panicked"))? {
            return Err(error);
        }
        let Rest {
            guest,
            arm64,
            agent,
            witness,
            library,
            conformance,
            example,
            c_examples,
            preload,
            bench,
            profiles,
            debian,
        } = rest.context("nothing failed")?;
        Ok(Self {
            newest: newest.map(|kernel| guest.with_kernel(kernel)),
            guest,
            arm64,
            emulator: emulator.context("nothing failed")?,
            agent,
            witness,
            library,
            under_test,
            conformance,
            example,
            c_examples,
            preload,
            bench,
            profiles,
            debian,
        })
    }

    /// The QEMU under test, if any, and the libraries that programs in L1 need.
    pub fn qemu_of(&self, spec: &ScenarioSpec, mode: Mode) -> Result<(Option<&Path>, Vec<PathBuf>)> {
        let preload = if spec.preload { self.preload.clone() } else { Vec::new() };
        if spec.program == Program::Debian {
            return Ok((None, vec![self.witness.clone()]));
        }
        if spec.program == Program::CExamples {
            return Ok((None, [std::slice::from_ref(&self.library), &self.c_examples].concat()));
        }
        if spec.program == Program::KernelTests {
            return Ok((None, [preload, kernel_tests::built(&Cache::open()?)?].concat()));
        }
        let Some(kind) = kind_of(spec, mode) else { return Ok((None, preload)) };
        let built = self.under_test.iter().find(|(series, built, _)| (*series, *built) == (spec.qemu, kind));
        let (.., qemu) =
            built.with_context(|| format!("QEMU {} ({}) was not built", spec.qemu, kind.name()))?;
        let (witness, library) = match spec.host.is_arm64() {
            true => self.arm64_qemu().map(|parts| (&parts.witness, &parts.library))?,
            false => (&self.witness, &self.library),
        };
        let library = kind.has_library().then(|| library.clone());
        Ok((Some(qemu), [witness.clone()].into_iter().chain(library).chain(preload).collect()))
    }

    /// Where the libraries are that a QEMU under test needs on that host, if not those of this machine.
    pub fn sysroot_for(&self, spec: &ScenarioSpec) -> Result<Option<&Sysroot>> {
        let needs = spec.host.is_arm64() && spec.program == Program::Qemu;
        needs.then(|| self.arm64_qemu().map(|parts| &parts.sysroot)).transpose()
    }

    /// The files that L1 boots from on that host.
    pub fn guest_for(&self, host: Host) -> Result<&Guest> {
        match host.kernel {
            _ if host.is_arm64() => self.arm64()?.guest(host),
            Kernel::Newest => self.newest.as_ref().context("the newest kernel was not built"),
            Kernel::Debian | Kernel::Debian16k => Ok(&self.guest),
        }
    }

    /// The QEMU that runs L1 on that host.
    pub fn emulator_for(&self, host: Host) -> Result<&Path> {
        Ok(if host.is_arm64() { &self.arm64()?.emulator } else { &self.emulator })
    }

    /// PID 1 on that host.
    pub fn agent_for(&self, host: Host) -> Result<&Path> {
        Ok(if host.is_arm64() { &self.arm64()?.agent } else { &self.agent })
    }

    /// The conformance tests for that host.
    pub fn conformance_for(&self, host: Host) -> Option<PathBuf> {
        match &self.arm64 {
            Some(arm64) if host.is_arm64() => arm64.conformance(host).cloned(),
            _ => self.conformance.clone(),
        }
    }

    fn arm64(&self) -> Result<&Arm64> {
        self.arm64.as_ref().context("nothing was built for arm64")
    }

    fn arm64_qemu(&self) -> Result<&ForQemu> {
        self.arm64()?.for_qemu.as_ref().context("nothing was built for a QEMU on arm64")
    }
}

/// Everything except QEMU and the newest kernel.
struct Rest {
    guest: Guest,
    arm64: Option<Arm64>,
    agent: PathBuf,
    witness: PathBuf,
    library: PathBuf,
    conformance: Option<PathBuf>,
    example: Option<PathBuf>,
    c_examples: Vec<PathBuf>,
    preload: Vec<PathBuf>,
    bench: Option<PathBuf>,
    profiles: Vec<PathBuf>,
    debian: Option<PathBuf>,
}

impl Rest {
    fn build(cache: &Cache, debian: &Debian, run: &Path, specs: &[ScenarioSpec]) -> Result<Self> {
        let guest = Guest::prepare(cache, debian)?;
        let step = |what: &str, log: &str, build: &dyn Fn(&Path) -> Result<PathBuf>| {
            progress::step(what, &run.join(log), build)
        };
        let agent = step("Build the agent", "agent.log", &|log| image::build_agent(Target::X86, log))?;
        let witness = step("Build the witness", "witness.log", &image::build_witness)?;
        let prefix = run.join("prefix");
        let library = step("Build the library", "library.log", &|log| {
            library::into(&prefix, log)?;
            Ok(prefix.join("lib").join(library::soname()))
        })?;
        let is_conformance = |spec: &ScenarioSpec| spec.program == Program::Conformance;
        let needs_conformance =
            specs.iter().any(|spec| is_conformance(spec) && !spec.preload && !spec.host.is_arm64());
        let mut preload = Vec::new();
        if specs.iter().any(|spec| spec.preload) {
            let built = step("Build what is preloaded", "preload.log", &library::preload)?;
            preload = vec![built.with_file_name(library::RUN), built];
        }
        if specs.iter().any(|spec| is_conformance(spec) && spec.preload) {
            let build = &image::build_preloaded_conformance;
            preload.push(step(
                "Build the conformance tests to preload into",
                "preloaded-conformance.log",
                build,
            )?);
        }
        let conformance = needs_conformance.then(|| {
            step("Build the conformance tests", "conformance-build.log", &|log| {
                image::build_conformance(Target::X86, 4, log)
            })
        });
        let needs_example = specs.iter().any(|spec| spec.program == Program::Example);
        let example = needs_example
            .then(|| step("Build the example of the Rust crate", "example-build.log", &image::build_example));
        let c_examples = match specs.iter().any(|spec| spec.program == Program::CExamples) {
            true => image::build_c_examples(&prefix, &run.join("c-examples.log"))?,
            false => Vec::new(),
        };
        let bench = specs.iter().find_map(ScenarioSpec::bench_name).map(|name| {
            step("Build the measuring program", "bench-build.log", &|log| image::build_measure(name, log))
        });
        let needs_debian = specs.iter().any(|spec| spec.program == Program::Debian);
        let debian_host =
            needs_debian.then(|| debian_host::image(&run.join("debian-host.log"))).transpose()?;
        let names = specs.iter().find_map(|spec| spec.profiles);
        let profiles = names.map(|names| apparmor::profiles(cache, debian, names)).transpose()?;
        Ok(Self {
            guest,
            arm64: Arm64::prepare(cache, run, specs)?,
            agent,
            witness,
            library,
            conformance: conformance.transpose()?,
            example: example.transpose()?,
            c_examples,
            preload,
            bench: bench.transpose()?,
            profiles: profiles.unwrap_or_default(),
            debian: debian_host,
        })
    }
}

/// The QEMUs under test of these scenarios, without duplicates, in the order that shares the most objects.
fn under_test(specs: &[ScenarioSpec]) -> Vec<(QemuSeries, Kind)> {
    let runs = specs.iter().flat_map(|spec| spec.modes.iter().map(move |mode| (spec, *mode)));
    let needed: Vec<_> = runs.filter_map(|(spec, mode)| Some((spec.qemu, kind_of(spec, mode)?))).collect();
    let kinds = [Kind::Stock, Kind::Off, Kind::On, Kind::Sanitized, Kind::OnArm64];
    let all = QemuSeries::ALL.into_iter().flat_map(|series| kinds.map(|kind| (series, kind)));
    all.filter(|qemu| needed.contains(qemu)).collect()
}

/// The QEMU under test of one run.
fn kind_of(spec: &ScenarioSpec, mode: Mode) -> Option<Kind> {
    match (&spec.program, mode) {
        (
            Program::Conformance
            | Program::Example
            | Program::CExamples
            | Program::KernelTests
            | Program::Debian
            | Program::Bench(_),
            _,
        ) => None,
        (Program::Qemu, _) if spec.host.is_arm64() => Some(Kind::OnArm64),
        (Program::Qemu, Mode::Reference) => Some(Kind::Stock),
        (Program::Qemu, Mode::NotBuilt) => Some(Kind::Off),
        (Program::Qemu, Mode::Stock | Mode::Fast) if spec.sanitized => Some(Kind::Sanitized),
        (Program::Qemu, Mode::Stock | Mode::Fast) => Some(Kind::On),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario;

    #[test]
    fn only_what_is_run_is_built() {
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            under_test(&scenario::chosen(&names).unwrap())
        };
        let usual = |kind| (QemuSeries::USUAL, kind);
        let newer = |kind| (QemuSeries::V10_2, kind);
        assert_eq!(under_test(&[scenario::main()]), [usual(Kind::On)]);
        assert_eq!(of(&["nvme-intel-debian"]), [usual(Kind::Stock), usual(Kind::On)]);
        assert_eq!(of(&["nvme-intel-newest-iommufd-qemu10.2"]), [newer(Kind::On)]);
        assert_eq!(of(&["conformance"]), []);
        let kinds = [Kind::Stock, Kind::Off, Kind::On].map(usual);
        assert_eq!(of(&[]), [&kinds[..], &[newer(Kind::On)]].concat());
    }
}
