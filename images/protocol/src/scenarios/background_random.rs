//! Requests in random order while the guest's memory is mapped in the background.

use std::time::Duration;

use crate::checks::checks;
use crate::host::Host;
use crate::job::Mode;
use crate::spec::{Device, Label, ScenarioSpec};

pub const NAME: &str = "background-random";

checks! {
    #[serde(rename_all = "kebab-case")]
    MappedAtEachBusMaster,
    MappedInTheEnd,
    NothingLeft,
    EverythingHappened,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        modes: &[Mode::Fast],
        label: Label::Host,
        l2_memory_mib: 512,
        devices: vec![Device::Nvme, Device::Edu],
        limit: Duration::from_secs(900),
        ..ScenarioSpec::plain(
            NAME,
            "memory is mapped in the background; reset, stop, cont, plug, unplug, quit and SIGKILL at random",
            Check::expected_names,
        )
    };
    let iommufd = type1.through_iommufd(Host::INTEL_NEWEST);
    vec![type1, iommufd]
}
