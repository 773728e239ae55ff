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
    tests.iter().map(CheckName::name).chain(Check::expected_names(run)).collect()
}
