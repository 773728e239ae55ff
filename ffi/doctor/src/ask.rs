//! The guest that the host is to be ready for.

/// What the caller asks about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Bytes of RAM of the guest, if they were given.
    pub guest: Option<u64>,
    /// The number of devices that are passed through.
    pub devices: u64,
    /// Whether the guest has a vIOMMU.
    pub viommu: bool,
}

impl Ask {
    /// The number of type1 containers, each of which pins all RAM: one for all devices, or behind a vIOMMU one for
    /// each.
    pub fn containers(self) -> u64 {
        if self.viommu { self.devices } else { 1 }
    }

    /// What is pinned of RAM in all containers, if the guest is known.
    pub fn pinned(self) -> Option<u64> {
        self.guest.map(|guest| guest.saturating_mul(self.containers()))
    }
}
