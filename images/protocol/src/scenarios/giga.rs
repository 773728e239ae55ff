//! L2's RAM is of 1-GiB pages.

use crate::checks::checks;
use crate::host::Host;
use crate::job::Mode;
use crate::machine::Machine;
use crate::spec::{Label, ScenarioSpec};

pub const NAME: &str = "giga";

checks! {
    #[serde(rename_all = "kebab-case")]
    Mappings,
    EveryPageUsed,
    ThreadsUsed,
    PopulatedOnce,
    PagesReturned,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        // One boot starts QEMU in both modes.
        modes: &[Mode::Fast],
        label: Label::Host,
        l2_memory_mib: 2048,
        machine: Some(Machine { kernel_options: "hugepagesz=1G hugepages=2", ..Machine::of_mib(4608) }),
        ..ScenarioSpec::plain(NAME, "RAM of 1-GiB pages", Check::expected_names)
    };
    let iommufd = type1.through_iommufd(Host::INTEL_NEWEST);
    vec![type1, iommufd]
}
