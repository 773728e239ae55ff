//! Management software starts every machine paused, and may add a device before the machine has run.

use crate::checks::checks;
use crate::host::Host;
use crate::spec::ScenarioSpec;

pub const NAME: &str = "paused";

checks! {
    #[serde(rename_all = "kebab-case")]
    MappingsBeforeRunning,
    NoThreadsBeforeRunning,
    MappingsAfterFirmware,
    UntouchedByStop,
    MappingsAfterResetWhileStopped,
    WitnessesAgree,
}

pub fn specs() -> Vec<ScenarioSpec> {
    let usual = ScenarioSpec::plain(
        NAME,
        "a device is added before the machine has run; stop, reset while stopped, and cont",
        Check::expected_names,
    );
    vec![usual.through_iommufd(Host::INTEL_NEWEST), usual]
}
