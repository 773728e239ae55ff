//! QEMU may run on one of L1's CPUs only, as management software pins its main thread or limits its cgroup, or has a
//! real-time policy.

use crate::checks::checks;
use crate::job::Mode;
use crate::spec::{Label, ScenarioSpec};

pub const NAME: &str = "pinned";

checks! {
    #[serde(rename_all = "kebab-case")]
    Mappings,
    FreeUsesBoth,
    FreeSaysNothing,
    PinnedUsesOne,
    PinnedSaysWhy,
    ThreadsPropertyUsesOne,
    ThreadsPropertyAddsNone,
    ContextPropertyUsesBoth,
    QuotaUsesOne,
    QuotaSaysWhy,
    CpusetUsesOne,
    CpusetSaysWhy,
    RealTimeUsesBoth,
    RealTimeStaysWithQemu,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        modes: &[Mode::Fast],
        label: Label::Host,
        l2_memory_mib: 256,
        ..ScenarioSpec::plain(
            NAME,
            "QEMU with fewer CPUs or another policy than usual: the library's threads, and what it says",
            Check::expected_names,
        )
    };
    vec![type1]
}
