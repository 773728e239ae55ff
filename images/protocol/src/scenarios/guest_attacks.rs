//! A hostile guest aims its devices at everything that they must not reach.

use std::time::Duration;

use crate::checks::checks;
use crate::host::Host;
use crate::spec::{Device, Run, ScenarioSpec};

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
    InterruptsAreNotRead if has_interrupts_remapped,
    EndsOfAddressSpace,
    Blocks,
    Dimm,
    RemovedDimm,
    FreedDimm,
    OtherDimmInItsPlace,
    RemovedBlocks,
    MappingsInTheEnd,
}

/// A device behind an IOMMU that does not remap interrupts reads in their range what the machine has there: no memory,
/// but registers of the interrupt controller. QEMU's model of that reads bytes of its own stack for a device.
fn has_interrupts_remapped(run: &Run) -> bool {
    run.spec.host.iommu.remaps_interrupts()
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
    let on = |host| ScenarioSpec { host, ..type1.clone() };
    vec![
        on(Host::INTEL_DEBIAN),
        on(Host::AMD_DEBIAN),
        on(Host::VIRTIO_NEWEST),
        type1.through_iommufd(Host::INTEL_NEWEST),
        type1.through_iommufd(Host::AMD_NEWEST),
        type1.through_iommufd(Host::VIRTIO_NEWEST),
    ]
}
