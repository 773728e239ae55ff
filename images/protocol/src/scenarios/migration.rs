//! L2 is migrated to another QEMU, with a device that writes to its memory all the time.

use crate::checks::checks;
use crate::host::Host;
use crate::machine::Machine;
use crate::spec::ScenarioSpec;

pub const NAME: &str = "migration";

checks! {
    #[serde(rename_all = "kebab-case")]
    MappingsSource,
    MappingsDestination,
    SentInRounds,
    TrackedByContainer,
    OnlyWrittenPagesDirty,
    DeviceWrites,
    DeviceGoesOn,
    MemoryUnchanged,
    QuitSource,
    QuitDestination,
}

pub fn specs() -> Vec<ScenarioSpec> {
    vec![ScenarioSpec {
        // Only the newest kernel is built with the device.
        host: Host::INTEL_NEWEST,
        devices: Vec::new(),
        l2_memory_mib: 512,
        // Two of them at the same time.
        machine: Some(Machine::of_mib(3072)),
        l2_boots: true,
        ..ScenarioSpec::plain(
            NAME,
            "migration with a device that writes to memory: what it wrote arrives, and it goes on",
            Check::expected_names,
        )
    }]
}
