//! Memory devices come and go, and the guest is migrated from QEMU to QEMU.

use std::time::Duration;

use crate::checks::checks;
use crate::machine::Machine;
use crate::scenarios::migration;
use crate::spec::ScenarioSpec;

pub const NAME: &str = "soak-migration";

checks! {
    #[serde(rename_all = "kebab-case")]
    MappingsThroughout,
    DataThroughout,
    EverythingHappened,
    NothingLeft,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let with_memory_devices = |spec| ScenarioSpec {
        scenario: NAME,
        what: "memory devices come and go, and the guest is migrated again and again",
        machine: Some(Machine::of_mib(4096)),
        // It takes minutes.
        only_by_name: true,
        limit: Duration::from_secs(1200),
        checks: Check::expected_names,
        ..spec
    };
    migration::specs().into_iter().map(with_memory_devices).collect()
}
