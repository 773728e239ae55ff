//! Memory and devices come and go in random order while a disk moves data, for as long as the run is given.

use std::time::Duration;

use crate::checks::checks;
use crate::host::Host;
use crate::spec::{Device, ScenarioSpec};

pub const NAME: &str = "soak";

checks! {
    #[serde(rename_all = "kebab-case")]
    MappingsThroughout,
    DataThroughout,
    NoThreadsThroughout,
    EverythingHappened,
    WitnessesAgree,
    // With an IOMMU of the guest's, each device has a container, and the second one's is gone in the end.
    StatsAgree if |run| run.is_fast() && run.spec.scenario == NAME,
    NothingLeft,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        devices: vec![Device::Nvme, Device::Edu],
        disk_mib: 8,
        l2_boots: true,
        soak: Duration::from_secs(120),
        limit: Duration::from_secs(900),
        ..ScenarioSpec::plain(
            NAME,
            "memory and devices come and go in random order while a disk moves data",
            Check::expected_names,
        )
    };
    let iommufd = type1.through_iommufd(Host::INTEL_NEWEST);
    vec![type1, iommufd]
}
