//! L1 has memory from which a long-term pin must move every page: a movable zone, or memory reserved for CMA.

use crate::checks::checks;
use crate::host::Host;
use crate::job::Mode;
use crate::machine::Machine;
use crate::spec::{Label, ScenarioSpec};

pub const NAME: &str = "movable";

checks! {
    #[serde(rename_all = "kebab-case")]
    PagesThatArePresentMigrate,
    Mappings,
    AnonSmallStays,
    AnonHugeStays,
    MemfdSmallStays,
    MemfdHugeStays,
}

/// One boot starts QEMU in both modes.
const ONE_BOOT: &[Mode] = &[Mode::Fast];
const L1_MIB: u64 = 4096;

pub fn specs() -> Vec<ScenarioSpec> {
    let with = |kernel_options| Some(Machine { kernel_options, ..Machine::of_mib(L1_MIB) });
    let zone = ScenarioSpec {
        modes: ONE_BOOT,
        label: Label::Host,
        l2_memory_mib: 512,
        // The memory above the PCI hole has 2 GiB, most of which becomes the zone.
        machine: with("movablecore=1536M"),
        ..ScenarioSpec::plain(
            NAME,
            "memory that a pin must move: the library lets no more pages migrate than stock",
            Check::expected_names,
        )
    };
    // Its kernel is built with CMA. A page comes from CMA where more than half of what is free belongs to it.
    let cma = ScenarioSpec { host: Host::INTEL_NEWEST, machine: with("cma=1536M"), ..zone.clone() };
    let iommufd = zone.through_iommufd(Host::INTEL_NEWEST);
    vec![zone, cma, iommufd]
}
