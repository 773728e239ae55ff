//! A BAR beyond the IOMMU's reach: one warning, and the VM goes on.

use crate::checks::checks;
use crate::spec::{Device, EVERY_MODE, ScenarioSpec};

pub const NAME: &str = "p2p-range";

checks! {
    #[serde(rename_all = "kebab-case")]
    SectionsTraced,
    FlatViewAfterFirmware,
    NoThreadsAfterFirmware,
    Alive,
    WitnessesAgree,
    SameAfterResets,
    OneWarning,
}

pub fn specs() -> Vec<ScenarioSpec> {
    vec![ScenarioSpec {
        modes: EVERY_MODE,
        // With memory above 4 GiB the firmware puts large BARs far up.
        l2_memory_mib: 3072,
        devices: vec![Device::Memory { mib: 64 }],
        // The firmware puts the BAR right above what these bits address.
        iommu_bits: 39,
        ..ScenarioSpec::plain(
            NAME,
            "a BAR beyond the IOMMU's reach: one warning, and the VM goes on",
            Check::expected_names,
        )
    }]
}
