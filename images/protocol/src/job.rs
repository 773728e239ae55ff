//! The job: what one boot of L1 has to do. The host writes it into the initrd as JSON.

use serde::{Deserialize, Serialize};

/// Where the job lies in L1.
pub const PATH: &str = "/vft/job.json";

/// What is exercised. The name is the one `cargo xtask e2e --only` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Boot, data through a passthrough NVMe, reset, data again, unplug.
    Nvme,
    /// Too little lockable memory, at realize and at run time.
    Errors,
    /// Memory devices come and go.
    Hotplug,
    /// A BAR beyond what the IOMMU can address.
    P2pRange,
    /// A device reads and writes another's BAR.
    P2pData,
    /// Two devices in one container, and a QEMU that becomes a daemon.
    TwoDevices,
    /// L2 has an IOMMU of its own.
    Viommu,
    /// A memory device of which L2 plugs and unplugs blocks.
    VirtioMem,
    /// What the library knows of kernels, held against this one; no QEMU, no L2.
    Conformance,
    /// Starts L2 again and again and times it: a measurement, for `cargo xtask bench --vm`.
    Starts,
    /// The engine's own bench with iommufd; no QEMU, no L2: a measurement, for `cargo xtask bench --iommufd`.
    Maps,
}

/// Which listener maps: the column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// QEMU without the patches.
    Reference,
    /// Patched QEMU, built without the library.
    NotBuilt,
    /// Patched QEMU, `x-dma-mapper=builtin`.
    Stock,
    /// Patched QEMU, `x-dma-mapper=libvfio-fast`.
    Fast,
}

impl Mode {
    /// Its name in files, checks and results.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Reference => "reference",
            Mode::NotBuilt => "not-built",
            Mode::Stock => "stock",
            Mode::Fast => "fast",
        }
    }

    /// The property a vfio-pci device gets, with its leading comma; unpatched QEMU knows none, and built without
    /// the library it needs none.
    pub fn device_property(self) -> &'static str {
        match self {
            Mode::Reference | Mode::NotBuilt => "",
            Mode::Stock => ",x-dma-mapper=builtin",
            Mode::Fast => ",x-dma-mapper=libvfio-fast",
        }
    }
}

/// What holds the mappings of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Container {
    /// A VFIO container.
    Type1,
    /// An IOAS of iommufd. It takes no addresses of BARs.
    Iommufd,
}

impl Container {
    /// The property a vfio-pci device gets, with its leading comma.
    pub fn device_property(self) -> &'static str {
        match self {
            Container::Type1 => "",
            Container::Iommufd => ",iommufd=iommufd0",
        }
    }
}

/// What [`Scenario::Nvme`] and [`Scenario::P2pData`] make L2's RAM of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ram {
    /// Anonymous memory; with iommufd a memfd.
    Usual,
    /// A memfd as its own backend makes it: it never gets huge pages.
    Memfd,
    /// Anonymous memory that QEMU fills before it realizes devices.
    Preallocated,
}

/// What L2 boots with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// SeaBIOS.
    SeaBios,
    /// EDK II for virtual machines.
    Ovmf,
}

/// What [`Scenario::Starts`] makes L2's RAM of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// Anonymous memory in a kernel that gives no huge pages.
    #[serde(rename = "anon-4k")]
    Anon4k,
    /// Anonymous memory with transparent huge pages.
    AnonThp,
    /// A memfd (shmem) in a kernel that gives no huge pages.
    #[serde(rename = "memfd-4k")]
    Memfd4k,
    /// A memfd (shmem) with transparent huge pages.
    MemfdThp,
}

impl Memory {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Anon4k, Self::AnonThp, Self::Memfd4k, Self::MemfdThp];

    /// Its name in tables and checks.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anon4k => "anon-4k",
            Self::AnonThp => "anon-thp",
            Self::Memfd4k => "memfd-4k",
            Self::MemfdThp => "memfd-thp",
        }
    }

    /// Whether it is a memfd.
    pub const fn is_memfd(self) -> bool {
        matches!(self, Self::Memfd4k | Self::MemfdThp)
    }

    /// Whether it may have huge pages.
    pub const fn may_be_huge(self) -> bool {
        matches!(self, Self::AnonThp | Self::MemfdThp)
    }
}

/// One boot of L1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What to do.
    pub scenario: Scenario,
    /// With which listener. [`Scenario::Starts`] takes [`Mode::Stock`] and [`Mode::Fast`], which are one binary, in turns.
    pub mode: Mode,
    /// In what.
    pub container: Container,
    /// PCI addresses, in L1, of the devices to hand to vfio-pci.
    pub devices: Vec<String>,
    /// RAM of L2 in MiB.
    pub l2_memory_mib: u64,
    /// What it is.
    pub ram: Ram,
    /// What boots it.
    pub firmware: Firmware,
    /// Whether QEMU runs in its sandbox.
    pub sandboxed: bool,
    /// Size of the disk under test in MiB.
    pub disk_mib: u64,
    /// Seed of the image L2 reads.
    pub image_seed: u64,
    /// Seed of what L2 writes.
    pub write_seed: u64,
    /// The memories and rounds in which [`Scenario::Starts`] starts each mode once; none elsewhere.
    pub starts: Vec<(Memory, u32)>,
    /// The tests [`Scenario::Conformance`] runs; none elsewhere.
    pub tests: Vec<String>,
    /// The bench that [`Scenario::Maps`] runs, its name first; none elsewhere.
    pub bench: Vec<String>,
    /// Seconds one wait (boot of L2, an event, QEMU's exit) may take.
    pub wait_s: u64,
}

impl Job {
    /// Whether BARs are mapped. iommufd takes them as dma-bufs, and only the library makes these.
    pub fn maps_bars(&self) -> bool {
        self.container == Container::Type1 || self.mode == Mode::Fast
    }

    /// The properties of a vfio-pci device that say how it is mapped, each with its leading comma.
    pub fn device_properties(&self) -> String {
        format!("{}{}", self.container.device_property(), self.mode.device_property())
    }
}

/// The disk in four equal parts, named by who touches them. The last block of the disk holds the
/// count of boots L2 has finished, so that L2 knows after a reset that there was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLayout {
    /// Bytes of the whole disk.
    pub bytes: u64,
}

impl DiskLayout {
    /// Bytes of the block at the end of the disk that counts boots.
    pub const STATE_BYTES: u64 = 4096;

    /// The layout of a disk of that many MiB.
    pub fn of_mib(mib: u64) -> Self {
        Self { bytes: mib << 20 }
    }

    /// What the given boot (counted from 0) reads and has to find as on the image.
    pub fn read_by(self, boot: u64) -> (u64, u64) {
        self.quarter(boot * 2)
    }

    /// What the given boot writes.
    pub fn written_by(self, boot: u64) -> (u64, u64) {
        self.quarter(boot * 2 + 1)
    }

    /// Where the boot counter lies.
    pub fn state_offset(self) -> u64 {
        self.bytes - Self::STATE_BYTES
    }

    /// Offset and length; the last quarter leaves the counter alone.
    fn quarter(self, index: u64) -> (u64, u64) {
        let length = self.bytes / 4;
        let start = index * length;
        let end = (start + length).min(self.state_offset() & !0xffff);
        (start, end - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_do_not_touch_the_counter() {
        let disk = DiskLayout::of_mib(64);
        assert_eq!(disk.read_by(0), (0, 16 << 20));
        assert_eq!(disk.written_by(0), (16 << 20, 16 << 20));
        let (start, length) = disk.written_by(1);
        assert_eq!(start, 48 << 20);
        assert!(start + length <= disk.state_offset());
    }

    #[test]
    fn memories_and_modes_have_one_name() {
        for memory in Memory::ALL {
            assert_eq!(serde_json::to_value(memory).unwrap(), memory.name());
        }
        for mode in [Mode::Reference, Mode::NotBuilt, Mode::Stock, Mode::Fast] {
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.name());
        }
    }

    #[test]
    fn a_job_survives_its_json() {
        let job = Job {
            scenario: Scenario::P2pRange,
            mode: Mode::Fast,
            container: Container::Iommufd,
            devices: vec!["0000:00:04.0".into()],
            l2_memory_mib: 3072,
            ram: Ram::Usual,
            firmware: Firmware::Ovmf,
            sandboxed: true,
            disk_mib: 64,
            image_seed: u64::MAX,
            write_seed: 1,
            starts: vec![(Memory::Anon4k, 3)],
            tests: vec!["type1".into()],
            bench: vec!["native".into(), "--rounds".into(), "3".into()],
            wait_s: 60,
        };
        let text = serde_json::to_string(&job).unwrap();
        assert!(text.contains("\"p2p-range\""), "{text}");
        assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job);
    }
}
