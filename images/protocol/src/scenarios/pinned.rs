//! QEMU may run on one of L1's CPUs only, as management software pins its main thread.

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
    ThreadsPropertyUsesBoth,
    ContextPropertyUsesBoth,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        modes: &[Mode::Fast],
        label: Label::Host,
        l2_memory_mib: 256,
        ..ScenarioSpec::plain(
            NAME,
            "QEMU pinned to one CPU: the library says so, and properties of the device let it use others",
            Check::expected_names,
        )
    };
    vec![type1]
}
