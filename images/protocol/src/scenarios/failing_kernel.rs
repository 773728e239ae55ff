//! QEMU with the library on a kernel whose allocations fail now and then.

use std::time::Duration;

use crate::checks::checks;
use crate::host::Host;
use crate::job::Mode;
use crate::spec::ScenarioSpec;

pub const NAME: &str = "failing-kernel";

checks! {
    #[serde(rename_all = "kebab-case")]
    EndsAsExpected,
    MappingsThroughout,
    NothingPinned,
    NoThreadsLeft,
    SecondTrySucceeds,
    EachOutcomeSeen,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        // Only this kernel has fault injection.
        host: Host::INTEL_NEWEST,
        // QEMU's listener maps otherwise, and ends QEMU for some of what the library undoes.
        modes: &[Mode::Fast],
        l2_memory_mib: 64,
        limit: Duration::from_secs(900),
        ..ScenarioSpec::plain(
            NAME,
            "allocations of the kernel fail while a device and memory are added, and when QEMU ends",
            Check::expected_names,
        )
    };
    vec![type1.through_iommufd(Host::INTEL_NEWEST), type1]
}
