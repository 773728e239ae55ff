//! A guest with a strict vIOMMU reads its disk, again and again: a measurement, for `cargo xtask bench --vm`.

use std::time::Duration;

use crate::checks::checks;
use crate::job::Mode;
use crate::memory::MemoryKind;
use crate::spec::{Label, ScenarioSpec};

pub const NAME: &str = "viommu-traffic";

checks! {
    #[serde(rename_all = "kebab-case")]
    DataRead,
}

/// None in the matrix: a bench asks for [`spec`].
pub fn specs() -> Vec<ScenarioSpec> {
    Vec::new()
}

/// That many rounds of both modes, in which the guest reads that many MiB.
pub fn spec(disk_mib: u64, rounds: u32) -> ScenarioSpec {
    ScenarioSpec {
        // A run alternates between both modes itself.
        modes: &[Mode::Fast],
        label: Label::Host,
        l2_memory_mib: 512,
        disk_mib,
        timed: true,
        prealloc_l1: true,
        starts: (0..rounds).map(|round| (MemoryKind::Anon4k, round)).collect(),
        // Many times what they need.
        limit: Duration::from_secs(300 + u64::from(rounds) * 240),
        ..ScenarioSpec::plain(
            NAME,
            "a guest with a strict vIOMMU reads its disk, timed",
            Check::expected_names,
        )
    }
}
