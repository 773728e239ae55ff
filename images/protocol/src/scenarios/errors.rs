//! Too little lockable memory, when a device is added and at run time.

use crate::checks::checks;
use crate::host::Host;
use crate::spec::{ALL_MODES, ScenarioSpec};

pub const NAME: &str = "errors";

checks! {
    #[serde(rename_all = "kebab-case")]
    RealizeError,
    AliveAfterRefusal,
    NothingMappedAfterRefusal,
    NoThreadsAfterRefusal,
    NothingLockedAfterRefusal,
    MappingsAfterSecondTry,
    // iommufd counts locked memory per user, which user space cannot read.
    LockedAsMapped if |run| run.on_type1(),
    // The library knows the limit, so QEMU refuses memory before it is plugged.
    RuntimeError if |run| !run.is_fast(),
    DimmRefused if |run| run.is_fast(),
    VirtioMemRefused if |run| run.is_fast(),
    // iommufd has no limit on entries.
    BlocksRefused if |run| run.is_fast() && run.on_type1(),
    AliveAfterRefusedPlug if |run| run.is_fast(),
    PluggedAfterRaise if |run| run.is_fast(),
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        modes: ALL_MODES,
        ..ScenarioSpec::plain(
            NAME,
            "too little lockable memory, when a device is added and at run time",
            Check::expected_names,
        )
    };
    let iommufd = type1.through_iommufd(Host::INTEL_NEWEST);
    vec![type1, iommufd]
}
