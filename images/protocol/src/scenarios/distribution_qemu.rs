//! Debian's own QEMU without and with the library of Debian's package preloaded: the same calls, and memory that several
//! threads have faulted in.

use std::time::Duration;

use crate::checks::checks;
use crate::job::Mode;
use crate::spec::{Label, Program, ScenarioSpec};

pub const NAME: &str = "distribution-qemu";

checks! {
    #[serde(rename_all = "kebab-case")]
    IsDebians,
    MappingsWithout,
    MappingsPreloaded,
    NoThreads,
    Data,
    SameCalls,
    SummaryAgrees,
    FaultedInByThreads,
}

pub fn specs() -> Vec<ScenarioSpec> {
    vec![ScenarioSpec {
        modes: &[Mode::Reference],
        label: Label::Host,
        program: Program::Debian,
        l2_memory_mib: 1536,
        disk_mib: 64,
        writes_disk: true,
        l2_boots: true,
        limit: Duration::from_secs(900),
        ..ScenarioSpec::plain(
            NAME,
            "Debian's QEMU with the library preloaded, both from Debian's packages",
            Check::expected_names,
        )
    }]
}
