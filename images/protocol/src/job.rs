//! The job: what one boot of L1 does. The host writes it into the initrd as JSON.

use serde::{Deserialize, Serialize};

use crate::host::Iommu;
use crate::memory::MemoryKind;

/// The job's file in L1.
pub const PATH: &str = "/vft/job.json";

/// The listener that maps: a column of the results.
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
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Reference => "reference",
            Mode::NotBuilt => "not-built",
            Mode::Stock => "stock",
            Mode::Fast => "fast",
        }
    }

    /// The property of a vfio-pci device, with a leading comma. Unpatched QEMU has none, and built without
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
    Type1,
    /// An IOAS of iommufd. It cannot map a BAR by address.
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

/// What L2's RAM is made of.
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

/// The firmware of L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    SeaBios,
    /// EDK II for virtual machines.
    Ovmf,
}

/// One boot of L1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The name of the scenario.
    pub scenario: String,
    /// A measurement of boot times alternates between both patched modes instead.
    pub mode: Mode,
    pub container: Container,
    /// That of L1.
    pub iommu: Iommu,
    /// PCI addresses in L1 of the devices that vfio-pci gets.
    pub devices: Vec<String>,
    pub l2_memory_mib: u64,
    pub ram: Ram,
    pub firmware: Firmware,
    /// Whether L1 is a Debian system, which is on a disk, and the QEMU under test is Debian's.
    pub debian: bool,
    /// Whether QEMU runs in its sandbox.
    pub sandboxed: bool,
    /// Whether L1's kernel counts calls and bytes. Not where time is the result: it costs most where most is mapped.
    pub counted: bool,
    /// Size of the disk under test.
    pub disk_mib: u64,
    /// Seed of what is on the disk at first.
    pub image_seed: u64,
    /// Seed of what L2 writes.
    pub write_seed: u64,
    /// The memories and rounds in which boot times are measured.
    pub starts: Vec<(MemoryKind, u32)>,
    /// The conformance tests to run: names of checks of that scenario.
    pub tests: Vec<String>,
    /// The engine's bench to run: its name, then its arguments.
    pub bench: Vec<String>,
    /// How long the scenario `soak` goes on.
    pub soak_s: u64,
    /// The longest that a single wait may take: for L2's boot, an event, QEMU's exit.
    pub wait_s: u64,
}

impl Job {
    /// Whether BARs are mapped. iommufd takes them as dma-bufs, which only the library exports.
    pub fn maps_bars(&self) -> bool {
        self.container == Container::Type1 || self.mode == Mode::Fast
    }

    /// The properties of a vfio-pci device that decide how it is mapped, each with a leading comma.
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
    fn a_mode_has_one_name() {
        for mode in [Mode::Reference, Mode::NotBuilt, Mode::Stock, Mode::Fast] {
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.name());
        }
    }

    #[test]
    fn a_job_survives_its_json() {
        let job = Job {
            scenario: "p2p-range".into(),
            mode: Mode::Fast,
            container: Container::Iommufd,
            iommu: Iommu::Virtio,
            devices: vec!["0000:00:04.0".into()],
            l2_memory_mib: 3072,
            ram: Ram::Usual,
            firmware: Firmware::Ovmf,
            debian: true,
            sandboxed: true,
            counted: true,
            disk_mib: 64,
            image_seed: u64::MAX,
            write_seed: 1,
            starts: vec![(MemoryKind::Anon4k, 3)],
            tests: vec!["type1_answers_as_type1".into()],
            bench: vec!["native".into(), "--rounds".into(), "3".into()],
            soak_s: 0,
            wait_s: 60,
        };
        let text = serde_json::to_string(&job).unwrap();
        assert!(text.contains("\"p2p-range\""), "{text}");
        assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job);
    }
}
