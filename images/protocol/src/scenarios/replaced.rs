//! A page of L2's RAM has a memory error, and QEMU replaces it at reset: the device must access the new page.

use crate::checks::checks;
use crate::job::Mode;
use crate::spec::ScenarioSpec;

pub const NAME: &str = "replaced";

checks! {
    #[serde(rename_all = "kebab-case")]
    MappingsBeforeError,
    PageReplaced,
    MappedAgain,
    MappingsAfterReset,
    NoThreadsAfterReset,
}

pub fn specs() -> Vec<ScenarioSpec> {
    vec![ScenarioSpec {
        // Without the library, the device keeps the old page.
        modes: &[Mode::Fast],
        l2_memory_mib: 512,
        ..ScenarioSpec::plain(
            NAME,
            "a page of L2's RAM is replaced after a memory error, and mapped again",
            Check::expected_names,
        )
    }]
}
