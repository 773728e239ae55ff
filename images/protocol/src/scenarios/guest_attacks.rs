//! A hostile guest aims its devices at everything that they must not reach.

use std::time::Duration;

use crate::checks::checks;
use crate::host::Host;
use crate::spec::{Device, ScenarioSpec};

pub const NAME: &str = "guest-attacks";

checks! {
    #[serde(rename_all = "kebab-case")]
    StartOfRam,
    FirmwareShadow,
    EndOfLowRam,
    ReadOnlyFirmware,
    EndOfHighRam,
    HoleBelow4Gib,
    EmulatedDevices,
    DeviceRegisters,
    MemoryOfDevice,
    AroundInterrupts,
    InterruptsAreNotRead,
    EndsOfAddressSpace,
    Blocks,
    Dimm,
    RemovedDimm,
    FreedDimm,
    OtherDimmInItsPlace,
    RemovedBlocks,
    MappingsInTheEnd,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        // Each access takes an edu a tenth of a second. The last device has a BAR of memory.
        devices: vec![Device::Edu, Device::Edu, Device::Edu, Device::Memory { mib: 1 }],
        device_faults: true,
        l2_boots: true,
        limit: Duration::from_secs(900),
        ..ScenarioSpec::plain(
            NAME,
            "a guest aims its devices at everything that they must not reach",
            Check::expected_names,
        )
    };
    let iommufd = type1.through_iommufd(Host::INTEL_NEWEST);
    vec![type1, iommufd]
}
