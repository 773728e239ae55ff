//! The engine's own benches on L1: no QEMU, no L2. Measurements, for `cargo xtask bench --iommufd` and `--calls`.

use std::time::Duration;

use crate::checks::checks;
use crate::host::Host;
use crate::job::{Container, Mode};
use crate::spec::{Device, Label, Program, ScenarioSpec};

pub const NAME: &str = "map-bench";

checks! {
    #[serde(rename_all = "kebab-case")]
    Measured,
}

/// None in the matrix: a bench asks for [`spec`].
pub fn specs() -> Vec<ScenarioSpec> {
    Vec::new()
}

/// A bench on that host with that container, the command with its name first, which needs so much memory and has so
/// much time.
pub fn spec(
    host: Host,
    container: Container,
    memory_mib: u64,
    bench: Vec<String>,
    limit: Duration,
) -> ScenarioSpec {
    ScenarioSpec {
        host,
        container,
        modes: &[Mode::Fast],
        label: Label::Host,
        l2_memory_mib: memory_mib,
        devices: vec![Device::Edu],
        timed: true,
        prealloc_l1: true,
        program: Program::Bench(bench),
        limit,
        ..ScenarioSpec::plain(NAME, "the engine's bench, timed", Check::expected_names)
    }
}
