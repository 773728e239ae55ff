//! Unpatched QEMU without and with libvfio_fast_preload: the same calls, and memory that several threads have faulted in.

use std::time::Duration;

use crate::checks::checks;
use crate::host::Host;
use crate::job::Mode;
use crate::spec::ScenarioSpec;

pub const NAME: &str = "preload";

checks! {
    #[serde(rename_all = "kebab-case")]
    MappingsWithout,
    MappingsPreloaded,
    NoThreadsAfterRealize,
    NoThreadsAfterBoot,
    Data,
    SameCalls,
    SummaryAgrees,
    FaultedInByThreads,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        host: Host::INTEL_NEWEST,
        modes: &[Mode::Reference],
        preload: true,
        l2_memory_mib: 3072,
        disk_mib: 64,
        writes_disk: true,
        l2_boots: true,
        limit: Duration::from_secs(900),
        ..ScenarioSpec::plain(
            NAME,
            "unpatched QEMU with the library preloaded: the same calls, memory faulted in by threads",
            Check::expected_names,
        )
    };
    vec![type1.through_iommufd(Host::INTEL_NEWEST), type1]
}
