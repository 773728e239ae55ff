//! When a guest first lets its devices access memory: a measurement, for docs/PERFORMANCE.md.

use std::time::Duration;

use crate::checks::checks;
use crate::job::{Firmware, Mode};
use crate::spec::{Device, Label, ScenarioSpec};

pub const NAME: &str = "first-dma";

checks! {
    #[serde(rename_all = "kebab-case")]
    EnabledByFirmware,
}

pub fn specs() -> Vec<ScenarioSpec> {
    vec![ScenarioSpec {
        modes: &[Mode::Fast],
        label: Label::Host,
        // Its files: the story starts guests with SeaBIOS as well.
        firmware: Firmware::Ovmf,
        devices: vec![Device::Nvme, Device::E1000e, Device::Igb, Device::Edu],
        timed: true,
        only_by_name: true,
        limit: Duration::from_secs(2400),
        ..ScenarioSpec::plain(
            NAME,
            "when firmware and Linux turn on the bus mastering of their devices (timed, not in --all)",
            Check::expected_names,
        )
    }]
}
