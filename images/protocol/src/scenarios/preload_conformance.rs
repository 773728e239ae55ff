//! The conformance tests with libvfio_fast_preload in the way of each call: what type1 and iommufd answer stays the same.

use super::conformance;
use crate::checks::{CheckName, checks};
use crate::host::Host;
use crate::spec::{Run, ScenarioSpec};

pub const NAME: &str = "preload-conformance";

checks! {
    #[serde(rename_all = "kebab-case")]
    CallsWentThrough,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let spec = conformance::specs().into_iter().find(|spec| spec.host == Host::INTEL_NEWEST);
    let spec = spec.expect("the conformance tests run on every host");
    vec![ScenarioSpec {
        scenario: NAME,
        what: "the conformance tests with the library preloaded into them: the same answers",
        preload: true,
        checks: expected,
        ..spec
    }]
}

fn expected(run: &Run) -> Vec<String> {
    let tests = conformance::Check::expected(run);
    let tests = tests.iter().filter(|test| !is_about_others(test));
    tests.map(CheckName::name).chain(Check::expected_names(run)).collect()
}

/// Whether a test shows nothing of what the kernel answers, but what killed processes leave, or what a device reaches.
fn is_about_others(test: &conformance::Check) -> bool {
    use conformance::Check::*;
    matches!(
        test,
        ProcessesKilledOnType1LeaveNothing
            | ProcessesKilledOnIommufdLeaveNothing
            | KilledAdoptersLoseNothing
            | DevicesOfType1ReachOnlyWhatIsMapped
            | DevicesOfIommufdReachOnlyWhatIsMapped
    )
}
