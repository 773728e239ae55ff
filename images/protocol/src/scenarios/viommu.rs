//! L2 has an IOMMU of its own, and moves data through it.

use std::time::Duration;

use crate::checks::checks;
use crate::host::Host;
use crate::spec::{Device, ScenarioSpec};

pub const NAME: &str = "viommu";

checks! {
    #[serde(rename_all = "kebab-case")]
    MappingsAfterRealize,
    SwitchedBoot,
    DataBoot,
    NoThreadsBoot,
    SwitchedReset,
    DataReset,
    NoThreadsReset,
    WitnessesAgree,
    StatsAgree if |run| run.is_fast(),
    SecondUnmapped,
    FirstLeftAlone,
    DataAfterUnplug,
    EventsOneToOne if |run| run.spec.scenario == NAME,
    // Of an AMD IOMMU.
    MapsInOrder if |run| run.spec.scenario != NAME,
    MapsAreLeaves if |run| run.is_fast(),
    // Without the library QEMU refuses to unmap an address space at once while it tracks dirty pages.
    UnmappedWithBitmap if |run| run.is_fast() && run.on_type1(),
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        devices: vec![Device::Nvme; 2],
        disk_mib: 8,
        writes_disk: true,
        l2_boots: true,
        limit: Duration::from_secs(900),
        ..ScenarioSpec::plain(
            NAME,
            "L2 has an IOMMU of its own, and moves data through it",
            Check::expected_names,
        )
    };
    let iommufd = type1.through_iommufd(Host::INTEL_NEWEST);
    vec![type1, iommufd]
}
