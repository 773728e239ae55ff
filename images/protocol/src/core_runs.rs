//! The runs that are a part of every check of the repository (`cargo xtask e2e --core`). The whole matrix (`--all`)
//! takes longer than such a check may take.
//!
//! A run is here if it shows what no other run here shows: a scenario, an IOMMU, a kernel interface (type1 or iommufd)
//! or a QEMU series that the result can depend on, or that the library turned off equals unpatched QEMU. Stock is left
//! out where a check has a better measure of what is right, such as the guest's memory map.

use crate::job::Mode;
use crate::spec::{ALL_MODES, EVERY_MODE, ScenarioSpec};

const FAST: &[Mode] = &[Mode::Fast];
/// An unmodified QEMU, into which the library is preloaded.
const PRELOADED: &[Mode] = &[Mode::Reference];

/// Names of specs, and the modes.
const RUNS: &[(&str, &[Mode])] = &[
    // The main scenario under each IOMMU.
    ("nvme-intel-debian", FAST),
    ("nvme-amd-debian", FAST),
    ("nvme-amd-newest", FAST),
    ("nvme-intel-newest-iommufd", FAST),
    ("nvme-virtio-newest-iommufd", FAST),
    // Each ioctl of a QEMU without the library is that of an unpatched one.
    ("two-devices-intel-debian", ALL_MODES),
    ("two-devices-intel-newest-iommufd", EVERY_MODE),
    // The kernels do what the model of them does.
    ("conformance-intel-debian", FAST),
    ("conformance-intel-newest", FAST),
    ("conformance-amd-newest", FAST),
    ("conformance-virtio-newest", FAST),
    // Another processor, and larger pages.
    ("conformance-smmu-debian16k", FAST),
    // What only some hosts show.
    ("background-intel-debian", FAST),
    ("background-ovmf-intel-debian", FAST),
    ("background-random-intel-newest-iommufd", FAST),
    ("c-examples-intel-debian", FAST),
    ("c-examples-intel-newest-iommufd", FAST),
    ("confined-intel-debian", FAST),
    ("distribution-qemu-intel-debian", PRELOADED),
    ("dpdk-intel-debian", PRELOADED),
    ("early-unplug-intel-debian", FAST),
    ("errors-intel-debian", FAST),
    ("errors-intel-newest-iommufd", FAST),
    ("failed-unmaps-intel-newest-iommufd", FAST),
    ("failing-kernel-intel-newest", FAST),
    ("failing-kernel-intel-newest-iommufd", FAST),
    ("giga-intel-newest-iommufd", FAST),
    ("guest-attacks-intel-debian", FAST),
    ("guest-attacks-amd-debian", FAST),
    ("guest-attacks-intel-newest-iommufd", FAST),
    ("hotplug-intel-debian", FAST),
    ("hotplug-intel-newest-iommufd", FAST),
    ("limits-intel-debian", FAST),
    ("migration-intel-newest", FAST),
    ("movable-intel-newest", FAST),
    ("p2p-auto-intel-newest-iommufd", FAST),
    ("p2p-data-intel-debian", FAST),
    ("p2p-data-intel-newest-iommufd", FAST),
    ("p2p-range-intel-debian", FAST),
    ("paused-intel-debian", FAST),
    ("pinned-intel-debian", FAST),
    ("placement-intel-debian", FAST),
    ("preload-intel-newest-iommufd", PRELOADED),
    ("preload-conformance-intel-newest", FAST),
    ("replaced-intel-debian", FAST),
    ("rust-example-intel-debian", FAST),
    ("soak-intel-debian", FAST),
    ("soak-viommu-intel-debian", FAST),
    ("viommu-intel-debian", FAST),
    ("viommu-intel-newest-iommufd", FAST),
    ("virtio-mem-intel-debian", FAST),
    ("virtio-mem-intel-newest-iommufd", FAST),
    // The other series.
    ("cpr-intel-debian-qemu10.2", FAST),
    ("cpr-intel-newest-iommufd-qemu10.2", FAST),
    ("nvme-intel-newest-iommufd-qemu10.2", FAST),
    ("two-devices-intel-debian-qemu10.2", FAST),
    ("viommu-amd-intel-debian-qemu10.2", FAST),
];

/// The specs that have runs here, with their modes. None has the machine to itself so that its times can be compared:
/// the main scenario alone does that.
pub fn of(specs: Vec<ScenarioSpec>) -> Vec<ScenarioSpec> {
    let modes = |spec: &ScenarioSpec| RUNS.iter().find(|(name, _)| *name == spec.name()).map(|run| run.1);
    let own = |spec: ScenarioSpec| {
        Some(ScenarioSpec { modes: modes(&spec)?, timed: false, prealloc_l1: false, ..spec })
    };
    specs.into_iter().filter_map(own).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::host::Host;
    use crate::qemu::QemuSeries;
    use crate::scenarios;

    #[test]
    fn each_is_a_run_of_the_matrix() {
        let all = scenarios::all();
        for (name, modes) in RUNS {
            let spec = all.iter().find(|spec| spec.name() == *name).unwrap_or_else(|| panic!("no {name}"));
            assert!(!spec.only_by_name && modes.iter().all(|mode| spec.modes.contains(mode)), "{name}");
        }
        assert_eq!(of(all).len(), RUNS.len());
    }

    #[test]
    fn nothing_is_left_out_altogether() {
        let all = scenarios::all();
        let core = of(all.clone());
        let scenarios_of = |specs: &[ScenarioSpec]| -> BTreeSet<&str> {
            let specs = specs.iter().filter(|spec| !spec.only_by_name);
            specs.map(|spec| spec.scenario).collect()
        };
        assert_eq!(scenarios_of(&core), scenarios_of(&all));
        for host in Host::X86 {
            assert!(core.iter().any(|spec| spec.host == host), "{host}");
        }
        assert!(core.iter().any(|spec| spec.host.is_arm64()));
        for series in QemuSeries::ALL {
            assert!(core.iter().any(|spec| spec.qemu == series), "{series}");
        }
        // A scenario that runs with the library in the matrix does so here.
        let has_fast = |spec: &ScenarioSpec| spec.modes.contains(&Mode::Fast);
        for spec in all.iter().filter(|spec| has_fast(spec) && !spec.only_by_name) {
            assert!(
                core.iter().any(|own| own.scenario == spec.scenario && has_fast(own)),
                "{}",
                spec.scenario
            );
        }
    }
}
