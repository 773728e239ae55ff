//! The examples for C programs, as they use the library: no QEMU, no L2.

use crate::checks::checks;
use crate::host::Host;
use crate::job::Mode;
use crate::spec::{Label, Program, ScenarioSpec};

pub const NAME: &str = "c-examples";

checks! {
    #[serde(rename_all = "kebab-case")]
    ReadsWhatTheDiskHolds,
    BlocksBeyondTheEndRefused,
    OneEntryForManyPages,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        modes: &[Mode::Fast],
        label: Label::Host,
        // For pages to map.
        l2_memory_mib: 512,
        disk_mib: 8,
        program: Program::CExamples,
        ..ScenarioSpec::plain(
            NAME,
            "C programs: an NVMe disk is read from user space, and many pages of 2 MiB are mapped",
            Check::expected_names,
        )
    };
    let iommufd = type1.through_iommufd(Host::INTEL_NEWEST);
    vec![type1, iommufd]
}
