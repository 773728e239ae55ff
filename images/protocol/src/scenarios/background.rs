//! The guest starts before its memory is mapped, and waits when it lets the device access memory.

use std::time::Duration;

use crate::checks::checks;
use crate::host::Host;
use crate::job::Mode;
use crate::spec::{Device, ScenarioSpec};

pub const NAME: &str = "background";

checks! {
    #[serde(rename_all = "kebab-case")]
    Byte,
    Word,
    Long,
    Mirror,
    ResetWhileWaiting,
    StopWhileWaiting,
    ContAfterStop,
    QuitWhileWaiting,
    KilledWhileFilling,
    FailureStopsGuest,
    NeverStarted,
    MappingsOfPaused,
    UnpluggedWhileFilling,
    Data,
    MappedAtBusMaster,
    MappingsAfterBoot,
    NoThreadsAfterBoot,
    MappingsAfterReset,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        modes: &[Mode::Fast],
        // The second has a BAR of 1 MiB.
        devices: vec![Device::Nvme, Device::Edu],
        l2_memory_mib: 2304,
        disk_mib: 32,
        l2_boots: true,
        limit: Duration::from_secs(900),
        ..ScenarioSpec::plain(
            NAME,
            "the guest starts before its memory is mapped, and waits before its device accesses memory",
            Check::expected_names,
        )
    };
    let iommufd = type1.through_iommufd(Host::INTEL_NEWEST);
    vec![type1, iommufd]
}
