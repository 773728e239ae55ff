//! Memory devices come, go, and take each other's place.

use std::time::Duration;

use crate::checks::checks;
use crate::host::Host;
use crate::spec::ScenarioSpec;

pub const NAME: &str = "hotplug";

checks! {
    #[serde(rename_all = "kebab-case")]
    MappingsAfterPlug,
    MappingsAfterUnplug,
    MemoryFreed,
    MappingsAfterReuse,
    NoThreadsAfterReuse,
    MappingsAtEveryCommit,
    MappedTwiceUnmappedOnce,
    WitnessesAgree,
    StatsAgree if |run| run.is_fast(),
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        l2_boots: true,
        limit: Duration::from_secs(900),
        ..ScenarioSpec::plain(
            NAME,
            "memory devices come, go, and take each other's place",
            Check::expected_names,
        )
    };
    let iommufd = type1.through_iommufd(Host::INTEL_NEWEST);
    vec![type1, iommufd]
}
