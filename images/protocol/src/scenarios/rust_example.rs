//! The example for Rust programs, as they use the library: no QEMU, no L2.

use crate::checks::checks;
use crate::job::Mode;
use crate::spec::{Device, Label, Program, ScenarioSpec};

pub const NAME: &str = "rust-example";

checks! {
    #[serde(rename_all = "kebab-case")]
    ExampleSucceeds,
    DeviceCopiedGuestMemory,
}

pub fn specs() -> Vec<ScenarioSpec> {
    vec![ScenarioSpec {
        modes: &[Mode::Fast],
        label: Label::Host,
        l2_memory_mib: 0,
        devices: vec![Device::Edu],
        program: Program::Example,
        ..ScenarioSpec::plain(
            NAME,
            "a Rust program maps vm-memory's regions, and a device copies some of them by DMA",
            Check::expected_names,
        )
    }]
}
