//! One scenario a file: what L1 does with QEMU and L2, and what it checks on the way.

pub mod boot_time;
pub mod conformance;
pub mod errors;
pub mod hotplug;
pub mod map_bench;
pub mod nvme;
pub mod p2p_data;
pub mod p2p_range;
pub mod two_devices;
pub mod viommu;
pub mod virtio_mem;
