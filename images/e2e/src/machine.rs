//! The hosts a scenario runs on: which IOMMU L1 has, and which kernel.

use std::fmt;

/// Which IOMMU L0 emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iommu {
    /// VT-d.
    Intel,
    /// AMD-Vi.
    Amd,
    /// virtio-iommu: L0 can print every operation of L1's kernel on it, and it cannot remap interrupts.
    Virtio,
}

/// Which kernel L1 runs. L2's is always Debian's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// That of Debian stable, which has type1 only.
    Debian,
    /// The newest, built here with iommufd.
    Newest,
}

/// One host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its IOMMU.
    pub iommu: Iommu,
    /// Its kernel.
    pub kernel: Kernel,
}

impl Machine {
    /// Every host, the usual one first.
    pub const ALL: [Self; 5] = [
        Self { iommu: Iommu::Intel, kernel: Kernel::Debian },
        Self { iommu: Iommu::Amd, kernel: Kernel::Debian },
        Self { iommu: Iommu::Intel, kernel: Kernel::Newest },
        Self { iommu: Iommu::Amd, kernel: Kernel::Newest },
        Self { iommu: Iommu::Virtio, kernel: Kernel::Newest },
    ];
    /// What runs on one host only runs on this one.
    pub const USUAL: Self = Self::ALL[0];
    /// AMD's with Debian's kernel.
    pub const AMD_DEBIAN: Self = Self::ALL[1];
    /// AMD's with the newest.
    pub const AMD_NEWEST: Self = Self::ALL[3];
    /// What needs the newest kernel, and one host, runs on this one.
    pub const USUAL_NEWEST: Self = Self::ALL[2];

    /// Whether it is measured how often the IOMMU's memory of translations is invalidated: L0 can tell of both, and one kernel
    /// is enough.
    pub fn shows_invalidations(self) -> bool {
        self.kernel == Kernel::Newest && matches!(self.iommu, Iommu::Intel | Iommu::Amd)
    }

    /// The IOMMU as an argument of QEMU. It reaches so many bits; AMD's has no such knob.
    pub fn iommu_device(self, bits: u32) -> String {
        match self.iommu {
            Iommu::Intel => format!("intel-iommu,intremap=on,caching-mode=on,aw-bits={bits}"),
            Iommu::Amd => "amd-iommu,intremap=on".to_owned(),
            Iommu::Virtio => format!("virtio-iommu-pci,addr=3.0,aw-bits={bits}"),
        }
    }

    /// Options for L1's kernel.
    pub fn kernel_options(self) -> &'static str {
        match self.iommu {
            Iommu::Intel => "intel_iommu=on iommu=nopt",
            Iommu::Amd => "iommu=nopt",
            // Without interrupt remapping no device is handed out unless this is said.
            Iommu::Virtio => {
                "iommu=nopt vfio_iommu_type1.allow_unsafe_interrupts=1 iommufd.allow_unsafe_interrupts=1"
            }
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let iommu = match self.iommu {
            Iommu::Intel => "intel",
            Iommu::Amd => "amd",
            Iommu::Virtio => "virtio",
        };
        let kernel = match self.kernel {
            Kernel::Debian => "debian",
            Kernel::Newest => "newest",
        };
        write!(f, "{iommu}-{kernel}")
    }
}
