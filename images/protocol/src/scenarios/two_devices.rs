//! Two devices in one container join and leave; a QEMU that becomes a daemon.

use crate::checks::checks;
use crate::host::Host;
use crate::spec::{ALL_MODES, Device, EVERY_MODE, ScenarioSpec};

pub const NAME: &str = "two-devices";

checks! {
    #[serde(rename_all = "kebab-case")]
    MappingsFirstDevice,
    MixedRefusedThrough if |run| run.is_fast(),
    MappingsBothDevices,
    SecondJoinsUntouched,
    MappingsOneLeft,
    FirstLeavesUntouched,
    NothingMappedAfterBothLeft,
    UnmappedBeforeLeaving,
    MappingsComeBack,
    WitnessesAgree,
    NoThreadsComeBack,
    TimelineAgrees if |run| run.is_fast(),
    MixedRefusedWithout if |run| run.is_fast(),
    DefaultIsBuiltin if |run| run.is_fast(),
    MappingsDaemon,
    NoThreadsDaemon,
    DaemonMapsItself,
    Quit,
    Killed,
    MappingsAfterKill,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        modes: ALL_MODES,
        devices: vec![Device::Nvme; 2],
        ..ScenarioSpec::plain(
            NAME,
            "two devices in one container join and leave; a QEMU that becomes a daemon",
            Check::expected_names,
        )
    };
    let iommufd = ScenarioSpec { modes: EVERY_MODE, ..type1.through_iommufd(Host::INTEL_NEWEST) };
    vec![type1, iommufd]
}
