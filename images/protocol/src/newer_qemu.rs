//! The scenarios that run on a newer QEMU as well.

use crate::job::Mode;
use crate::qemu::QemuSeries;
use crate::spec::{ALL_MODES, PATCHED, ScenarioSpec};

const FAST: &[Mode] = &[Mode::Fast];

/// Scenarios, by the names of their specs, and the modes. What does not depend on QEMU is shown on one series.
const SCENARIOS: [(&str, &[Mode]); 9] = [
    ("nvme-intel-debian", PATCHED),
    ("nvme-intel-newest-iommufd", FAST),
    ("viommu-intel-debian", FAST),
    ("hotplug-intel-debian", FAST),
    ("errors-intel-debian", FAST),
    ("two-devices-intel-debian", FAST),
    ("virtio-mem-intel-debian", FAST),
    ("p2p-data-intel-newest", FAST),
    ("background-intel-debian", FAST),
];

/// Those that run only where they are named, because a whole run of all checks would take too long with them: iommufd
/// in place of type1, and the other IOMMUs. The first one also compares with unpatched QEMU, which is built only for it.
const BY_NAME: [(&str, &[Mode]); 13] = [
    ("nvme-amd-debian", ALL_MODES),
    ("nvme-amd-newest", PATCHED),
    ("nvme-virtio-newest", PATCHED),
    ("nvme-amd-newest-iommufd", PATCHED),
    ("nvme-virtio-newest-iommufd", PATCHED),
    ("viommu-intel-newest-iommufd", PATCHED),
    ("hotplug-intel-newest-iommufd", PATCHED),
    ("errors-intel-newest-iommufd", PATCHED),
    ("two-devices-intel-newest-iommufd", PATCHED),
    // Its stock maps by file, which leaves nothing in the page tables that the check reads.
    ("virtio-mem-intel-newest-iommufd", FAST),
    ("p2p-data-intel-newest-iommufd", PATCHED),
    ("p2p-data-amd-debian", PATCHED),
    ("migration-intel-newest", PATCHED),
];

/// The same specs on the newer QEMU, without comparisons of times.
pub fn specs(usual: &[ScenarioSpec]) -> Vec<ScenarioSpec> {
    let newer = |(name, modes): &(&str, &'static [Mode]), only_by_name| {
        let spec = usual.iter().find(|spec| spec.name() == *name)?;
        let qemu = QemuSeries::V10_2;
        Some(ScenarioSpec { qemu, modes, only_by_name, timed: false, prealloc_l1: false, ..spec.clone() })
    };
    let always = SCENARIOS.iter().filter_map(|scenario| newer(scenario, false));
    always.chain(BY_NAME.iter().filter_map(|scenario| newer(scenario, true))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenarios::{self, cpr, viommu_amd};

    #[test]
    fn every_name_is_one_of_a_spec() {
        // These have no older QEMU to run on.
        let only_newer = [cpr::NAME, viommu_amd::NAME];
        let all = scenarios::all().into_iter().filter(|spec| !only_newer.contains(&spec.scenario));
        let newer = all.filter(|spec| spec.name().ends_with("-qemu10.2")).count();
        assert_eq!(newer, SCENARIOS.len() + BY_NAME.len());
    }

    #[test]
    fn a_whole_run_has_few_of_them() {
        let newer = scenarios::all().into_iter().filter(|spec| spec.qemu != QemuSeries::USUAL);
        let runs: usize = newer.filter(|spec| !spec.only_by_name).map(|spec| spec.modes.len()).sum();
        assert!(runs <= 14, "{runs} runs: move some to BY_NAME");
    }
}
