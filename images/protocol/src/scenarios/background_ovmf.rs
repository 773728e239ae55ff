//! A guest in the background that boots OVMF: firmware is the first to turn on the bus mastering of its device.

use std::time::Duration;

use crate::checks::checks;
use crate::job::{Firmware, Mode};
use crate::spec::{Device, Label, ScenarioSpec};

pub const NAME: &str = "background-ovmf";

checks! {
    #[serde(rename_all = "kebab-case")]
    HeldForFirmware,
    MappedAtBusMaster,
    Data,
    MappingsAfterBoot,
    HeldAfterReset,
    MappingsAfterReset,
}

pub fn specs() -> Vec<ScenarioSpec> {
    vec![ScenarioSpec {
        modes: &[Mode::Fast],
        label: Label::Host,
        firmware: Firmware::Ovmf,
        devices: vec![Device::Nvme],
        disk_mib: 32,
        l2_boots: true,
        limit: Duration::from_secs(600),
        ..ScenarioSpec::plain(
            NAME,
            "OVMF turns on bus mastering while memory is mapped in the background, and waits",
            Check::expected_names,
        )
    }]
}
