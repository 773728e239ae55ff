//! Debian's DPDK drives two connected network cards, without and with the library of Debian's package preloaded.

use crate::checks::checks;
use crate::job::Mode;
use crate::spec::{Device, Label, Program, ScenarioSpec};

pub const NAME: &str = "dpdk";

checks! {
    #[serde(rename_all = "kebab-case")]
    PacketsWithout,
    PacketsPreloaded,
    CleanEnds,
    SameCalls,
    SummaryAgrees,
    NothingPinned,
}

pub fn specs() -> Vec<ScenarioSpec> {
    vec![ScenarioSpec {
        modes: &[Mode::Reference],
        label: Label::Host,
        program: Program::Debian,
        devices: vec![Device::Connected, Device::Connected],
        ..ScenarioSpec::plain(
            NAME,
            "dpdk-testpmd of Debian with the library preloaded, on two network cards",
            Check::expected_names,
        )
    }]
}
