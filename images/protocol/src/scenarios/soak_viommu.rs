//! As soak, with an IOMMU of the guest's.

use std::time::Duration;

use crate::scenarios::soak;
use crate::spec::ScenarioSpec;

pub const NAME: &str = "soak-viommu";

pub fn specs() -> Vec<ScenarioSpec> {
    let with_viommu = |spec: ScenarioSpec| ScenarioSpec {
        scenario: NAME,
        what: "the same with an IOMMU of the guest's, which maps and unmaps while the disk moves data",
        // Each page is a call of its own.
        disk_mib: 1,
        soak: Duration::from_secs(60),
        ..spec
    };
    soak::specs().into_iter().map(with_viommu).collect()
}
