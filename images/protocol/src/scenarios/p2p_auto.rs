//! BARs are mapped once another device can access them, and not before.

use crate::checks::checks;
use crate::host::Host;
use crate::job::Mode;
use crate::spec::{Device, ScenarioSpec};

pub const NAME: &str = "p2p-auto";

checks! {
    #[serde(rename_all = "kebab-case")]
    LoneBarNotMapped,
    Data,
    MappedAtMostTwice,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        host: Host::INTEL_NEWEST,
        modes: &[Mode::Fast],
        devices: vec![Device::Edu, Device::File { mib: 4096 }, Device::Empty { mib: 64 << 10 }],
        l2_boots: true,
        ..ScenarioSpec::plain(
            NAME,
            "a BAR is mapped once another device can access it, and never if there is none",
            Check::expected_names,
        )
    };
    let iommufd = type1.through_iommufd(Host::INTEL_NEWEST);
    vec![type1, iommufd]
}
