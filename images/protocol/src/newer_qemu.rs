//! The scenarios that run on a newer QEMU as well.

use crate::job::Mode;
use crate::qemu::QemuSeries;
use crate::spec::{ALL_MODES, PATCHED, ScenarioSpec};

const FAST: &[Mode] = &[Mode::Fast];

/// Scenarios, by the names of their specs, and the modes. What does not depend on QEMU is shown on one series; that the
/// library changes nothing where it is off, by the main scenario.
const SCENARIOS: [(&str, &[Mode]); 9] = [
    ("nvme-intel-debian", ALL_MODES),
    ("nvme-intel-newest-iommufd", FAST),
    ("viommu-intel-debian", PATCHED),
    ("hotplug-intel-debian", FAST),
    ("errors-intel-debian", FAST),
    ("two-devices-intel-debian", FAST),
    ("virtio-mem-intel-debian", FAST),
    ("p2p-data-intel-newest", FAST),
    ("background-intel-debian", FAST),
];

/// The same specs on the newer QEMU, without comparisons of times.
pub fn specs(usual: &[ScenarioSpec]) -> Vec<ScenarioSpec> {
    let newer = |(name, modes): &(&str, &'static [Mode])| {
        let spec = usual.iter().find(|spec| spec.name() == *name)?;
        let qemu = QemuSeries::V10_2;
        Some(ScenarioSpec { qemu, modes, timed: false, prealloc_l1: false, ..spec.clone() })
    };
    SCENARIOS.iter().filter_map(newer).collect()
}

#[cfg(test)]
mod tests {
    use crate::scenarios;

    #[test]
    fn every_name_is_one_of_a_spec() {
        let newer = scenarios::all().iter().filter(|spec| spec.name().ends_with("-qemu10.2")).count();
        assert_eq!(newer, super::SCENARIOS.len());
    }
}
