//! L2 plugs and unplugs blocks of memory, and one cannot be mapped.

use std::time::Duration;

use crate::checks::checks;
use crate::host::Host;
use crate::spec::ScenarioSpec;

pub const NAME: &str = "virtio-mem";

checks! {
    #[serde(rename_all = "kebab-case")]
    MappingsAfterRealize,
    BlocksAfterRealize,
    DataBoot,
    MappingsAfterPlug,
    BlocksAfterPlug,
    MappingsAfterUnplug,
    BlocksAfterUnplug,
    UnpluggedAlone,
    MappingsAfterPlugAgain,
    BlocksAfterPlugAgain,
    PluggedAlone,
    OneCommitPerRequest if |run| run.is_fast(),
    UnpluggedNotFilled,
    NoThreadsAfterPlugAgain,
    WitnessesAgree,
    StatsAgree if |run| run.is_fast(),
    RequestRefused if |run| run.is_fast(),
    RolledBack,
    RefusalReported if |run| run.is_fast(),
    FailuresCounted if |run| run.is_fast(),
    MappingsAfterRefusal,
    BlocksAfterRefusal,
    LockedAfterRefusal,
    AliveAfterRefusal,
    MappingsAfterRaise,
    BlocksAfterRaise,
    RefusedBlockUndone,
    DataReset,
    MappingsAfterReset,
    BlocksAfterReset,
    NoThreadsAfterReset,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        disk_mib: 8,
        writes_disk: true,
        l2_boots: true,
        limit: Duration::from_secs(900),
        ..ScenarioSpec::plain(
            NAME,
            "L2 plugs and unplugs blocks of memory, and one cannot be mapped",
            Check::expected_names,
        )
    };
    let iommufd = type1.through_iommufd(Host::INTEL_NEWEST);
    vec![type1, iommufd]
}
