//! The hosts that scenarios run on: the IOMMU and the kernel of L1.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The IOMMU that L0 emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Iommu {
    Intel,
    Amd,
    /// L0 can print every operation of L1's kernel on it, and it cannot remap interrupts.
    Virtio,
    /// SMMUv3, on a machine with arm64 processors.
    Smmu,
}

impl Iommu {
    /// Whether it can remap interrupts.
    pub fn remaps_interrupts(self) -> bool {
        self != Self::Virtio
    }
}

/// The kernel that L1 runs. L2's is always Debian's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian stable's, which has type1 only.
    Debian,
    /// The same with pages of 16 KiB, which Debian builds for arm64 only.
    Debian16k,
    /// The newest one, built here with iommufd.
    Newest,
}

/// A host: the kind of L1 that a scenario runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    pub iommu: Iommu,
    pub kernel: Kernel,
}

impl Host {
    /// Every host with x86 processors; first the one on which a scenario runs that needs one host only.
    pub const X86: [Self; 5] = [
        Self { iommu: Iommu::Intel, kernel: Kernel::Debian },
        Self { iommu: Iommu::Amd, kernel: Kernel::Debian },
        Self { iommu: Iommu::Intel, kernel: Kernel::Newest },
        Self { iommu: Iommu::Amd, kernel: Kernel::Newest },
        Self { iommu: Iommu::Virtio, kernel: Kernel::Newest },
    ];
    /// Every host with arm64 processors.
    pub const ARM64: [Self; 2] = [
        Self { iommu: Iommu::Smmu, kernel: Kernel::Debian },
        Self { iommu: Iommu::Smmu, kernel: Kernel::Debian16k },
    ];
    pub const SMMU_DEBIAN: Self = Self::ARM64[0];
    pub const INTEL_DEBIAN: Self = Self::X86[0];
    pub const AMD_DEBIAN: Self = Self::X86[1];
    pub const AMD_NEWEST: Self = Self::X86[3];
    pub const INTEL_NEWEST: Self = Self::X86[2];
    pub const VIRTIO_NEWEST: Self = Self::X86[4];

    /// Every host.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::X86.into_iter().chain(Self::ARM64)
    }

    pub fn is_arm64(self) -> bool {
        self.iommu == Iommu::Smmu
    }

    /// KiB of a page of L1's kernel, and of the smallest page of its IOMMU.
    pub fn page_kib(self) -> u32 {
        match self.kernel {
            Kernel::Debian | Kernel::Newest => 4,
            Kernel::Debian16k => 16,
        }
    }

    /// Whether invalidations of the IOMMU's translation caches are counted on this host: QEMU traces them for VT-d and
    /// AMD-Vi, and one kernel is enough.
    pub fn shows_invalidations(self) -> bool {
        self.kernel == Kernel::Newest && matches!(self.iommu, Iommu::Intel | Iommu::Amd)
    }

    /// The machine as an argument of QEMU.
    pub fn machine(self) -> &'static str {
        match self.is_arm64() {
            // The interrupt controller remaps the devices' interrupts, without which the kernel hands out no device.
            // KVM needs processors with virtualization.
            true => "virt,virtualization=on,iommu=smmuv3,gic-version=3",
            false => "q35,kernel-irqchip=split",
        }
    }

    /// The IOMMU as an argument of QEMU, with addresses of that many bits, unless the machine has it. AMD's has no such
    /// option.
    pub fn iommu_device(self, bits: u32) -> Option<String> {
        match self.iommu {
            Iommu::Intel => Some(format!("intel-iommu,intremap=on,caching-mode=on,aw-bits={bits}")),
            Iommu::Amd => Some("amd-iommu,intremap=on".to_owned()),
            Iommu::Virtio => Some(format!("virtio-iommu-pci,addr=3.0,aw-bits={bits}")),
            Iommu::Smmu => None,
        }
    }

    /// Options for L1's kernel that depend on its processors.
    pub fn console_options(self) -> &'static str {
        match self.is_arm64() {
            true => "console=ttyAMA0 earlycon=pl011,0x9000000",
            false => "console=ttyS0 earlycon=uart8250,io,0x3f8 no_timer_check unknown_nmi_panic",
        }
    }

    /// Options for L1's kernel that depend on its IOMMU.
    pub fn iommu_options(self) -> &'static str {
        match self.iommu {
            Iommu::Intel => "intel_iommu=on iommu=nopt",
            Iommu::Amd => "iommu=nopt",
            // Without interrupt remapping the kernel hands out no device unless it is allowed to.
            Iommu::Virtio => {
                "iommu=nopt vfio_iommu_type1.allow_unsafe_interrupts=1 iommufd.allow_unsafe_interrupts=1"
            }
            Iommu::Smmu => "iommu.passthrough=0",
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let iommu = match self.iommu {
            Iommu::Intel => "intel",
            Iommu::Amd => "amd",
            Iommu::Virtio => "virtio",
            Iommu::Smmu => "smmu",
        };
        let kernel = match self.kernel {
            Kernel::Debian => "debian",
            Kernel::Debian16k => "debian16k",
            Kernel::Newest => "newest",
        };
        write!(f, "{iommu}-{kernel}")
    }
}
