//! What the host needs for a scenario on one kind of L1: the machines to boot, and the checks that they make.

use std::time::Duration;

use crate::host::Host;
use crate::job::{Container, Firmware, Mode, Ram};
use crate::machine::Machine;
use crate::memory::MemoryKind;
use crate::qemu::QemuSeries;

pub const ALL_MODES: &[Mode] = &[Mode::Reference, Mode::Stock, Mode::Fast];
pub const EVERY_MODE: &[Mode] = &[Mode::Reference, Mode::NotBuilt, Mode::Stock, Mode::Fast];
/// One binary, with the library off and on. That off equals unpatched QEMU is shown where all modes run.
pub const PATCHED: &[Mode] = &[Mode::Stock, Mode::Fast];

/// A scenario on one host, with one kind of container.
#[derive(Clone, Debug)]
pub struct ScenarioSpec {
    pub scenario: &'static str,
    pub host: Host,
    pub container: Container,
    /// The QEMU under test.
    pub qemu: QemuSeries,
    /// Whether patched QEMU is the one compiled with sanitizers.
    pub sanitized: bool,
    /// What it shows, for `--list`.
    pub what: &'static str,
    /// The modes it is run in, one boot of L1 each.
    pub modes: &'static [Mode],
    /// How the names of its runs differ.
    pub label: Label,
    /// L1, where it has to be another machine than usual.
    pub machine: Option<Machine>,
    /// RAM of L2, or of whatever else L1 needs memory for.
    pub l2_memory_mib: u64,
    pub ram: Ram,
    pub firmware: Firmware,
    /// Whether QEMU runs in its sandbox.
    pub sandboxed: bool,
    /// The AppArmor profiles that L1 gets: libvirt's without and with the rules of this repository.
    pub profiles: Option<[&'static str; 2]>,
    /// The devices under test, at slots 4, 5, ... of L1's root bus.
    pub devices: Vec<Device>,
    /// Address bits of L1's IOMMU.
    pub iommu_bits: u32,
    pub disk_mib: u64,
    /// Whether L2 boots twice and writes the disk, which the host then compares.
    pub writes_disk: bool,
    /// Whether L2's kernel runs and has a log to judge.
    pub l2_boots: bool,
    /// Whether L1's kernel has to kill QEMU because its group uses too much memory.
    pub kills_for_memory: bool,
    /// Whether a device has to access what is not mapped.
    pub device_faults: bool,
    /// Whether its times are compared, so that nothing else may run at the same time.
    pub timed: bool,
    /// Whether L0 records every operation of L1's kernel on a virtio-iommu, and compares it with the ioctls.
    pub traces_iommu: bool,
    /// Whether it runs only where it is named: a measurement, or what a whole run has no time for.
    pub only_by_name: bool,
    /// Whether all of L1's memory is populated before it boots, so that its first touches do not cost L0 page faults.
    pub prealloc_l1: bool,
    /// What L1 runs.
    pub program: Program,
    /// Whether L1 has vfio-fast-run, which preloads a library into an unmodified program.
    pub preload: bool,
    /// The memories and rounds in which boot times are measured.
    pub starts: Vec<(MemoryKind, u32)>,
    /// How long the scenario `soak` goes on.
    pub soak: Duration,
    /// Time for a whole run of L1.
    pub limit: Duration,
    /// The names of the checks that a run has to make.
    pub checks: fn(&Run) -> Vec<String>,
}

/// A run: a spec in one mode.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    pub spec: &'a ScenarioSpec,
    pub mode: Mode,
}

impl Run<'_> {
    pub fn is_fast(&self) -> bool {
        self.mode == Mode::Fast
    }

    pub fn on_iommufd(&self) -> bool {
        self.spec.container == Container::Iommufd
    }

    pub fn on_type1(&self) -> bool {
        self.spec.container == Container::Type1
    }

    /// Whether a check's condition holds of the run.
    pub(crate) fn holds(&self, condition: impl Fn(&Run) -> bool) -> bool {
        condition(self)
    }
}

/// What L1 runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// The QEMU under test.
    Qemu,
    /// The engine's conformance tests.
    Conformance,
    /// The example of the Rust crate.
    Example,
    /// The examples for C programs.
    CExamples,
    /// The tests that the newest kernel's source has.
    KernelTests,
    /// Programs that Debian ships, in a Debian system with the library's packages.
    Debian,
    /// A bench of the engine's: its name, then its arguments.
    Bench(Vec<String>),
}

/// How the names of a spec's runs differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    Mode,
    /// Only the host does: there is one run on each.
    Host,
    /// The size of L2's memory.
    Memory,
}

/// A PCI device that L0 emulates for L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// An NVMe disk. The first one of a spec is the disk under test.
    Nvme,
    /// A device that no driver of L1's binds, with a DMA engine that reaches every address.
    Edu,
    /// An ivshmem device with a BAR of that many MiB of memory.
    Memory { mib: u64 },
    /// The same, of a file that the host fills before the run and compares after it.
    File { mib: u64 },
    /// A device with a BAR of that many MiB without memory.
    Empty { mib: u64 },
    /// A network card that firmware has a driver for.
    E1000e,
    /// A network card that firmware has no driver for.
    Igb,
    /// An E1000e that is connected to all others of its kind.
    Connected,
    /// Not a device under test: a disk of that many MiB that L1 keeps, with an ext4 file system.
    Ext4 { mib: u64 },
}

impl ScenarioSpec {
    /// The defaults of a scenario: an NVMe disk without contents, and no guest kernel.
    pub fn plain(scenario: &'static str, what: &'static str, checks: fn(&Run) -> Vec<String>) -> Self {
        Self {
            scenario,
            host: Host::INTEL_DEBIAN,
            container: Container::Type1,
            qemu: QemuSeries::USUAL,
            sanitized: false,
            what,
            modes: PATCHED,
            label: Label::Mode,
            machine: None,
            l2_memory_mib: 1024,
            ram: Ram::Usual,
            firmware: Firmware::SeaBios,
            sandboxed: false,
            profiles: None,
            devices: vec![Device::Nvme],
            // The default is 39, which cannot map what a guest puts above 512 GiB.
            iommu_bits: 48,
            disk_mib: 1,
            writes_disk: false,
            l2_boots: false,
            kills_for_memory: false,
            device_faults: false,
            timed: false,
            traces_iommu: false,
            only_by_name: false,
            prealloc_l1: false,
            program: Program::Qemu,
            preload: false,
            starts: Vec::new(),
            soak: Duration::ZERO,
            limit: Duration::from_secs(600),
            checks,
        }
    }

    /// The same through iommufd, on that host.
    pub fn through_iommufd(&self, host: Host) -> Self {
        Self {
            container: Container::Iommufd,
            host,
            timed: false,
            prealloc_l1: false,
            ram: Ram::Usual,
            firmware: Firmware::SeaBios,
            profiles: None,
            ..self.clone()
        }
    }

    /// The checks that a run has to make; a missing one is a failure.
    pub fn expected_checks(&self, mode: Mode) -> Vec<String> {
        (self.checks)(&Run { spec: self, mode })
    }

    /// Its name on the command line.
    pub fn name(&self) -> String {
        let container = match self.container {
            Container::Type1 => "",
            Container::Iommufd => "-iommufd",
        };
        let name = format!("{}-{}{container}", self.scenario, self.host);
        match self.qemu {
            QemuSeries::USUAL => name,
            newer => format!("{name}-qemu{newer}"),
        }
    }

    /// The name of one of its runs.
    pub fn run_name(&self, mode: Mode) -> String {
        match self.label {
            Label::Mode => format!("{}-{}", self.name(), mode.name()),
            Label::Host => self.name(),
            Label::Memory => format!("{}-{}m", self.scenario, self.l2_memory_mib),
        }
    }

    /// L1. By default it has L2's memory, and room for its own programs.
    pub fn l1(&self) -> Machine {
        self.machine.clone().unwrap_or_else(|| Machine::of_mib(self.l2_memory_mib + 2048))
    }

    /// PCI addresses in L1 of the devices under test.
    pub fn addresses(&self) -> Vec<String> {
        let slots = (FIRST_SLOT..).zip(&self.devices);
        let tested = slots.filter(|(_, device)| !matches!(device, Device::Ext4 { .. }));
        tested.map(|(slot, _)| format!("0000:00:{slot:02x}.0")).collect()
    }

    /// The size of the file that is a BAR, if there is one.
    pub fn bar_mib(&self) -> Option<u64> {
        self.devices.iter().find_map(|device| match device {
            Device::File { mib } => Some(*mib),
            _ => None,
        })
    }

    /// Whether L0 writes down every invalidation of the IOMMU's translation caches, for a bench to count.
    pub fn traces_invalidations(&self) -> bool {
        self.bench_name().is_some_and(|name| name == "calls")
    }

    /// The engine's bench that L1 runs, if it runs one.
    pub fn bench_name(&self) -> Option<&str> {
        match &self.program {
            Program::Bench(command) => command.first().map(String::as_str),
            Program::Qemu
            | Program::Conformance
            | Program::Example
            | Program::CExamples
            | Program::KernelTests
            | Program::Debian => None,
        }
    }
}

/// The slot of the first device under test.
pub const FIRST_SLOT: u8 = 4;
