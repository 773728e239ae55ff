//! What is run: the table of scenarios, and what each must have looked at.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use vfio_fast_protocol::job::{Container, Firmware, Memory, Mode, Ram, Scenario};

use super::machine::{Iommu, Kernel, Machine};

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which.
    pub scenario: Scenario,
    /// On which host.
    pub machine: Machine,
    /// What holds the mappings.
    pub container: Container,
    /// What it shows, for `--list`.
    pub what: &'static str,
    /// The listeners it is run with.
    pub modes: &'static [Mode],
    /// RAM of L2, or what else L1 has memory for.
    pub l2_memory_mib: u64,
    /// What that RAM is.
    pub ram: Ram,
    /// What boots it.
    pub firmware: Firmware,
    /// Whether QEMU runs in its sandbox.
    pub sandboxed: bool,
    /// Size of the disk under test.
    pub disk_mib: u64,
    /// Size of the BAR in which data is moved; 0 where none is.
    pub bar_mib: u64,
    /// Size of a BAR that is only mapped; 0 where there is none.
    pub idle_bar_mib: u64,
    /// Whether L2 boots twice and writes the disk.
    pub writes_disk: bool,
    /// Whether L2's kernel runs and has a log to judge.
    pub l2_boots: bool,
    /// Whether its times are compared, so that nothing may run beside it.
    pub timed: bool,
    /// The memories and rounds that are measured, where that is what it is about.
    pub starts: Vec<(Memory, u32)>,
    /// The engine's bench to run, its name first, where one is.
    pub bench: Vec<String>,
    /// Time for the whole run of L1.
    pub limit: Duration,
}

const ALL_MODES: &[Mode] = &[Mode::Reference, Mode::Stock, Mode::Fast];
const EVERY_MODE: &[Mode] = &[Mode::Reference, Mode::NotBuilt, Mode::Stock, Mode::Fast];
/// One binary, the library off and on: that off is unpatched is shown where all modes run.
pub const PATCHED: &[Mode] = &[Mode::Stock, Mode::Fast];

/// What the lines of the table share: no disk contents, no guest kernel.
const PLAIN: Plan = Plan {
    scenario: Scenario::Errors,
    machine: Machine::USUAL,
    container: Container::Type1,
    what: "",
    modes: PATCHED,
    l2_memory_mib: 1024,
    ram: Ram::Usual,
    firmware: Firmware::SeaBios,
    sandboxed: false,
    disk_mib: 1,
    bar_mib: 0,
    idle_bar_mib: 0,
    writes_disk: false,
    l2_boots: false,
    timed: false,
    starts: Vec::new(),
    bench: Vec::new(),
    limit: Duration::from_secs(600),
};

/// Every scenario of e2e on every host it runs on.
pub fn plans() -> Vec<Plan> {
    let mut plans = on_the_usual_host().to_vec();
    let nvme = plans[0].clone();
    // One comparison of times is enough, and these can run beside each other.
    let others = Machine::ALL.into_iter().filter(|machine| *machine != nvme.machine);
    plans.extend(others.map(|machine| Plan {
        machine,
        timed: false,
        modes: PATCHED,
        ram: if machine == Machine::AMD_NEWEST { Ram::Preallocated } else { Ram::Usual },
        // One host is enough: a large firmware takes long in an emulated machine.
        firmware: if machine == Machine::USUAL_NEWEST { Firmware::Ovmf } else { Firmware::SeaBios },
        // The newest kernel is built without seccomp.
        sandboxed: machine == Machine::AMD_DEBIAN,
        ..nvme.clone()
    }));
    let with_remapping = Machine::ALL.into_iter().filter(|machine| machine.iommu != Iommu::Virtio);
    plans.extend(with_remapping.map(p2p_data));
    plans.extend(through_iommufd(&plans));
    plans.extend(Machine::ALL.map(|machine| Plan {
        scenario: Scenario::Conformance,
        machine,
        what: "type1 and iommufd answer as the library's model of them does",
        modes: &[Mode::Fast],
        l2_memory_mib: 0,
        ..PLAIN
    }));
    plans
}

/// The scenario of data in BARs. A kernel before 6.15 maps each page of a BAR by itself, which takes half a second for a
/// GiB in an emulated machine: there the BAR is small. Every kernel unmaps it so: the large one is on one host only.
fn p2p_data(machine: Machine) -> Plan {
    let bar_mib = if machine.kernel == Kernel::Newest { 4096 } else { 2048 };
    let idle_bar_mib = if machine == Machine::USUAL_NEWEST { 64 << 10 } else { 0 };
    Plan {
        scenario: Scenario::P2pData,
        machine,
        what: "a device reads and writes another's BAR, which is mapped as a whole",
        // In base pages it takes several times as long to map: here there is less of it than in the main scenario.
        ram: if machine == Machine::AMD_DEBIAN { Ram::Memfd } else { Ram::Usual },
        bar_mib,
        idle_bar_mib,
        l2_boots: true,
        ..PLAIN
    }
}

/// What of these is run with iommufd as well: the main scenario wherever the kernel has it, and the others on one host.
/// A BAR that cannot be mapped is in the main scenario already: without the library iommufd takes none at all.
fn through_iommufd(plans: &[Plan]) -> Vec<Plan> {
    let mut chosen = Vec::new();
    for plan in plans {
        let iommufd = Plan {
            container: Container::Iommufd,
            timed: false,
            ram: Ram::Usual,
            firmware: Firmware::SeaBios,
            ..plan.clone()
        };
        match plan.scenario {
            Scenario::Nvme if plan.machine == Machine::USUAL_NEWEST => {
                chosen.push(Plan { modes: ALL_MODES, ..iommufd });
            }
            Scenario::Nvme if plan.machine.kernel == Kernel::Newest => chosen.push(iommufd),
            Scenario::P2pData if plan.machine == Machine::USUAL_NEWEST => chosen.push(iommufd),
            Scenario::TwoDevices => {
                chosen.push(Plan { machine: Machine::USUAL_NEWEST, modes: EVERY_MODE, ..iommufd });
            }
            Scenario::Errors | Scenario::Hotplug | Scenario::Viommu | Scenario::VirtioMem => {
                chosen.push(Plan { machine: Machine::USUAL_NEWEST, ..iommufd });
            }
            _ => {}
        }
    }
    chosen
}

fn on_the_usual_host() -> [Plan; 7] {
    [
        Plan {
            scenario: Scenario::Nvme,
            what: "boot, data through a passthrough NVMe, reset, data again, unplug",
            modes: ALL_MODES,
            // Memory on both sides of 4 GiB: the machine has 2 GiB below.
            l2_memory_mib: 3072,
            disk_mib: 64,
            writes_disk: true,
            l2_boots: true,
            timed: true,
            limit: Duration::from_secs(900),
            ..PLAIN
        },
        Plan {
            scenario: Scenario::Errors,
            what: "too little lockable memory, when a device is added and at run time",
            modes: ALL_MODES,
            ..PLAIN
        },
        Plan {
            scenario: Scenario::Hotplug,
            what: "memory devices come, go, and take each other's place",
            l2_boots: true,
            limit: Duration::from_secs(900),
            ..PLAIN
        },
        Plan {
            scenario: Scenario::P2pRange,
            what: "a BAR beyond the IOMMU's reach: one warning, and the VM goes on",
            modes: EVERY_MODE,
            // With memory above 4 GiB the firmware puts large BARs far up.
            l2_memory_mib: 3072,
            ..PLAIN
        },
        Plan {
            scenario: Scenario::TwoDevices,
            what: "two devices in one container join and leave; a QEMU that becomes a daemon",
            modes: ALL_MODES,
            ..PLAIN
        },
        Plan {
            scenario: Scenario::Viommu,
            what: "L2 has an IOMMU of its own, and moves data through it",
            disk_mib: 8,
            writes_disk: true,
            l2_boots: true,
            limit: Duration::from_secs(900),
            ..PLAIN
        },
        Plan {
            scenario: Scenario::VirtioMem,
            what: "L2 plugs and unplugs blocks of memory, and one cannot be mapped",
            disk_mib: 8,
            writes_disk: true,
            l2_boots: true,
            limit: Duration::from_secs(900),
            ..PLAIN
        },
    ]
}

impl Plan {
    /// The measurement of `cargo xtask bench --vm` for guests of one size.
    pub fn starts(l2_memory_mib: u64, starts: Vec<(Memory, u32)>) -> Self {
        let pairs = starts.len() as u64;
        Self {
            scenario: Scenario::Starts,
            what: "starts of L2, timed",
            // Both: see `Job::mode`.
            modes: &[Mode::Fast],
            l2_memory_mib,
            timed: true,
            starts,
            // Many times what they need.
            limit: Duration::from_secs(240 + pairs * (120 + l2_memory_mib / 8)),
            ..PLAIN
        }
    }

    /// The measurement of `cargo xtask bench --iommufd`: the engine's bench with these arguments, which needs so much memory
    /// and has so much time.
    pub fn maps(memory_mib: u64, bench: Vec<String>, limit: Duration) -> Self {
        Self {
            scenario: Scenario::Maps,
            machine: Machine::USUAL_NEWEST,
            container: Container::Iommufd,
            what: "the engine's bench, timed",
            modes: &[Mode::Fast],
            l2_memory_mib: memory_mib,
            timed: true,
            bench,
            limit,
            ..PLAIN
        }
    }

    /// One of `cargo xtask bench --calls`: that bench, with this IOMMU.
    pub fn calls(machine: Machine, memory_mib: u64, bench: Vec<String>, limit: Duration) -> Self {
        Self { machine, ..Self::maps(memory_mib, bench, limit) }
    }

    /// Whether L0 writes down each time L1's kernel invalidates what the IOMMU remembers, for a bench to count.
    pub fn traces_invalidations(&self) -> bool {
        self.bench.first().is_some_and(|name| name == "calls")
    }

    /// Its name on the command line.
    pub fn name(&self) -> String {
        match self.container {
            Container::Type1 => format!("{}-{}", self.scenario_name(), self.machine),
            Container::Iommufd => format!("{}-{}-iommufd", self.scenario_name(), self.machine),
        }
    }

    fn scenario_name(&self) -> String {
        // The names serde gives are the names everywhere.
        let value = serde_json::to_value(self.scenario).expect("a plain enum");
        value.as_str().expect("a plain enum is a string").to_owned()
    }

    /// The name of one of its runs.
    pub fn run_name(&self, mode: Mode) -> String {
        match self.scenario {
            Scenario::Starts => format!("{}-{}m", self.scenario_name(), self.l2_memory_mib),
            // No listener maps.
            Scenario::Conformance | Scenario::Maps => self.name(),
            _ => format!("{}-{}", self.name(), mode.name()),
        }
    }

    /// RAM of L1: L2's, and room for its own programs.
    pub fn l1_memory_mib(&self) -> u64 {
        self.l2_memory_mib + 2048
    }

    /// PCI addresses in L1 of the devices under test.
    pub fn addresses(&self) -> Vec<String> {
        let slots: &[u8] = match self.scenario {
            Scenario::TwoDevices | Scenario::Viommu => &[4, 5],
            Scenario::P2pData if self.idle_bar_mib > 0 => &[4, 5, 6],
            Scenario::P2pData => &[4, 5],
            _ => &[4],
        };
        slots.iter().map(|slot| format!("0000:00:{slot:02x}.0")).collect()
    }

    /// Whether L0 writes down what L1's kernel does with its IOMMU.
    pub fn traces_iommu(&self) -> bool {
        self.machine.iommu == Iommu::Virtio && self.scenario == Scenario::Nvme
    }

    /// Arguments for L1's memory.
    pub fn l0_memory(&self) -> Vec<String> {
        let mib = self.l1_memory_mib();
        let mut arguments = vec!["-m".to_owned(), format!("{mib}M")];
        if matches!(self.scenario, Scenario::Starts | Scenario::Maps) {
            // What L1 touches for the first time would otherwise cost this machine a fault, too.
            let memory = format!("memory-backend-ram,id=l1,size={mib}M,prealloc=on");
            arguments.extend(["-object", &memory, "-machine", "memory-backend=l1"].map(str::to_owned));
        }
        arguments
    }

    /// Arguments for L1's IOMMU and the devices under test.
    pub fn l0_devices(&self, disk: &Path, bar: &Path) -> Vec<[String; 2]> {
        // 39 bits are QEMU's default, and cannot map what a guest puts above 512 GiB.
        let bits = if self.scenario == Scenario::P2pRange { 39 } else { 48 };
        let mut devices = vec![["-device".to_owned(), self.machine.iommu_device(bits)]];
        if matches!(self.scenario, Scenario::Conformance | Scenario::Maps) {
            // A device that no driver of L1's wants and that does nothing by itself.
            devices.push(["-device".into(), "edu,addr=4.0".into()]);
            return devices;
        }
        if self.scenario == Scenario::P2pRange {
            devices.extend(
                [
                    ["-object", "memory-backend-ram,id=bar,size=64M,share=on"],
                    ["-device", "ivshmem-plain,memdev=bar,addr=4.0"],
                ]
                .map(|pair| pair.map(str::to_owned)),
            );
            return devices;
        }
        if self.scenario == Scenario::P2pData {
            let file = format!("memory-backend-file,id=bar,size={}M,share=on,mem-path=", self.bar_mib);
            devices.extend(
                [
                    ["-device", "edu,addr=4.0,dma_mask=0xffffffffffffffff"],
                    ["-object", &format!("{file}{}", bar.display())],
                    ["-device", "ivshmem-plain,memdev=bar,addr=5.0"],
                ]
                .map(|pair| pair.map(str::to_owned)),
            );
            if self.idle_bar_mib > 0 {
                // No memory is behind this BAR, so it may be of any size.
                let device = format!("pci-testdev,membar={}M,addr=6.0", self.idle_bar_mib);
                devices.push(["-device".into(), device]);
            }
            return devices;
        }
        for (n, address) in self.addresses().iter().enumerate() {
            // Every device a disk of its own: QEMU locks what it writes.
            let path = if n == 0 { disk.to_owned() } else { disk.with_extension(format!("{n}.img")) };
            let drive = format!("if=none,id=disk{n},format=raw,cache=unsafe,file={}", path.display());
            let slot = address.trim_start_matches("0000:00:");
            let device = format!("nvme,serial=vft{n},drive=disk{n},addr={slot}");
            devices.push(["-drive".into(), drive]);
            devices.push(["-device".into(), device]);
        }
        devices
    }
}

/// The scenarios of these names, on all their hosts where the name says none; all without any names.
pub fn chosen(names: &[String]) -> Result<Vec<Plan>> {
    let plans = plans();
    let is = |plan: &Plan, name: &String| *name == plan.name() || *name == plan.scenario_name();
    if let Some(unknown) = names.iter().find(|name| !plans.iter().any(|plan| is(plan, name))) {
        let known: Vec<String> = plans.iter().map(Plan::name).collect();
        bail!("there is no scenario {unknown}, only {}", known.join(", "));
    }
    let wanted = |plan: &Plan| names.is_empty() || names.iter().any(|name| is(plan, name));
    Ok(plans.into_iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose() {
        assert_eq!(chosen(&[]).unwrap().len(), plans().len());
        let names = |name: &str| -> Vec<String> {
            chosen(&[name.to_owned()]).unwrap().iter().map(Plan::name).collect()
        };
        assert_eq!(names("p2p-range"), ["p2p-range-intel-debian"]);
        assert_eq!(names("errors"), ["errors-intel-debian", "errors-intel-newest-iommufd"]);
        assert_eq!(names("conformance").len(), Machine::ALL.len());
        assert_eq!(names("nvme-amd-newest"), ["nvme-amd-newest"]);
        assert_eq!(names("nvme")[0], "nvme-intel-debian");
        assert!(chosen(&["nvmee".into()]).unwrap_err().to_string().contains("nvme"));
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = plans().iter().map(Plan::name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), plans().len());
    }
}
