//! The hosts that scenarios run on: the IOMMU and the kernel of L1.

use std::fmt;

/// The IOMMU that L0 emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iommu {
    Intel,
    Amd,
    /// L0 can print every operation of L1's kernel on it, and it cannot remap interrupts.
    Virtio,
}

/// The kernel that L1 runs. L2's is always Debian's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian stable's, which has type1 only.
    Debian,
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
    /// Every host; first the one on which a scenario runs that needs one host only.
    pub const ALL: [Self; 5] = [
        Self { iommu: Iommu::Intel, kernel: Kernel::Debian },
        Self { iommu: Iommu::Amd, kernel: Kernel::Debian },
        Self { iommu: Iommu::Intel, kernel: Kernel::Newest },
        Self { iommu: Iommu::Amd, kernel: Kernel::Newest },
        Self { iommu: Iommu::Virtio, kernel: Kernel::Newest },
    ];
    pub const INTEL_DEBIAN: Self = Self::ALL[0];
    pub const AMD_DEBIAN: Self = Self::ALL[1];
    pub const AMD_NEWEST: Self = Self::ALL[3];
    pub const INTEL_NEWEST: Self = Self::ALL[2];

    /// Whether invalidations of the IOMMU's translation caches are counted on this host: QEMU traces them for VT-d and
    /// AMD-Vi, and one kernel is enough.
    pub fn shows_invalidations(self) -> bool {
        self.kernel == Kernel::Newest && matches!(self.iommu, Iommu::Intel | Iommu::Amd)
    }

    /// The IOMMU as an argument of QEMU, with addresses of that many bits. AMD's has no such option.
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
            // Without interrupt remapping the kernel hands out no device unless it is allowed to.
            Iommu::Virtio => {
                "iommu=nopt vfio_iommu_type1.allow_unsafe_interrupts=1 iommufd.allow_unsafe_interrupts=1"
            }
        }
    }
}

impl fmt::Display for Host {
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
