//! A device is to be unplugged before L2's kernel runs: L2 misses that request, and fulfils the next one.

use std::time::Duration;

use crate::checks::checks;
use crate::spec::ScenarioSpec;

pub const NAME: &str = "early-unplug";

checks! {
    #[serde(rename_all = "kebab-case")]
    MappingsAfterBoot,
    FirstRequestMissed,
    NothingMappedAfterUnplug,
    UnmappedBeforeLeaving,
    WitnessesAgree,
    NoThreadsAfterUnplug,
}

pub fn specs() -> Vec<ScenarioSpec> {
    vec![ScenarioSpec {
        l2_boots: true,
        limit: Duration::from_secs(900),
        ..ScenarioSpec::plain(
            NAME,
            "L2 misses a request to release a device, and fulfils the next one",
            Check::expected_names,
        )
    }]
}
