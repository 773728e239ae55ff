//! The kernel refuses to unmap what a vIOMMU, virtio-mem or an unplug removes, or nobody knows any more what is mapped.

use std::time::Duration;

use crate::checks::checks;
use crate::host::Host;
use crate::job::Mode;
use crate::spec::{Device, ScenarioSpec};

pub const NAME: &str = "failed-unmaps";

checks! {
    #[serde(rename_all = "kebab-case")]
    ExitOfADeadDevice,
    ExitWithPendingTransactions,
    ExitWithAsyncTeardown,
    BlockUnmappedLater,
    DimmKept,
    DimmUnmappedLater,
    DeviceUnmappedLater,
    ExitAfterRefusals,
    StoppedByBlock,
    StoppedByDimm,
    PageUnmappedLater,
    StoppedByPage,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        devices: vec![Device::Nvme; 2],
        // Enough that L2 still reads it when the first event arrives.
        disk_mib: 32,
        l2_boots: true,
        modes: &[Mode::Fast],
        limit: Duration::from_secs(900),
        ..ScenarioSpec::plain(
            NAME,
            "the kernel refuses to unmap, or nobody knows what is mapped",
            Check::expected_names,
        )
    };
    let iommufd = type1.through_iommufd(Host::INTEL_NEWEST);
    vec![type1, iommufd]
}
