//! L2 is handed over to another QEMU on the same machine, with its device, while the device moves data (cpr-transfer).

use crate::checks::checks;
use crate::host::Host;
use crate::job::Mode;
use crate::qemu::QemuSeries;
use crate::spec::{PATCHED, ScenarioSpec};

pub const NAME: &str = "cpr";

checks! {
    #[serde(rename_all = "kebab-case")]
    MappingsSource,
    // QEMU's own code does not take back what a failed QEMU has taken over.
    RefusedDestinationEnds if |run| run.on_type1() && run.is_fast(),
    SourceTakesBack if |run| run.on_type1() && run.is_fast(),
    MovesDataAfterRefusal if |run| run.on_type1() && run.is_fast(),
    TakenOverInTheirSizes if |run| run.on_type1(),
    ProcessChanged if |run| run.on_iommufd(),
    NothingMappedAnew,
    MappingsDestination,
    NoThreads,
    MovesDataAtDestination,
    SourceLeavesMappings,
    QuitDestination,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let usual = ScenarioSpec {
        qemu: QemuSeries::V10_2,
        modes: PATCHED,
        l2_memory_mib: 1024,
        disk_mib: 64,
        l2_boots: true,
        ..ScenarioSpec::plain(
            NAME,
            "L2 and its device are handed over to another QEMU while the device moves data",
            Check::expected_names,
        )
    };
    let iommufd = ScenarioSpec { modes: &[Mode::Fast], ..usual.clone().through_iommufd(Host::INTEL_NEWEST) };
    vec![usual, iommufd]
}
