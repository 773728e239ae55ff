//! libvirt of Debian starts Debian's QEMU with the library of Debian's package preloaded, in its AppArmor profile, with a
//! device that it takes from the host's driver and gives back.

use std::time::Duration;

use crate::checks::checks;
use crate::job::Mode;
use crate::spec::{Label, Program, ScenarioSpec};

pub const NAME: &str = "libvirt";

checks! {
    #[serde(rename_all = "kebab-case")]
    Defined,
    DeviceTaken,
    Running,
    Confined,
    Memlock,
    LockedAsMapped,
    Data,
    DeviceGivenBack,
    NothingMappedAfterDetach,
    DataAfterAttach,
    DeviceGivenBackAtEnd,
    NothingPinned,
    SummaryAgrees,
    FaultedInByThreads,
    NothingOfOursDenied,
}

pub fn specs() -> Vec<ScenarioSpec> {
    vec![ScenarioSpec {
        modes: &[Mode::Reference],
        label: Label::Host,
        program: Program::Debian,
        l2_memory_mib: 1024,
        disk_mib: 64,
        writes_disk: true,
        l2_boots: true,
        only_by_name: true,
        limit: Duration::from_secs(1200),
        ..ScenarioSpec::plain(
            NAME,
            "libvirt and QEMU of Debian, the library preloaded, a managed device, AppArmor",
            Check::expected_names,
        )
    }]
}
