//! The main scenario: boot, data through a passthrough NVMe disk, reset, data again, unplug, plug.

use std::time::Duration;

use crate::checks::checks;
use crate::host::{Host, Iommu, Kernel};
use crate::job::{Firmware, Mode, Ram};
use crate::qemu::QemuSeries;
use crate::spec::{ALL_MODES, PATCHED, ScenarioSpec};

pub const NAME: &str = "nvme";

checks! {
    #[serde(rename_all = "kebab-case")]
    MappingsAfterRealize,
    FlatViewAfterRealize,
    NoThreadsAfterRealize,
    MappingsAfterBoot,
    MappingsAfterReset,
    NoThreadsAfterReset,
    MappingsAtEveryCommit,
    Data,
    WitnessesAgree,
    StatsAgree if |run| run.is_fast(),
    RamAmplification if |run| run.is_fast(),
    EqualPiecesUntouched if |run| run.is_fast(),
    ThreadsInSandbox if |run| run.spec.sandboxed,
    PreallocatedPassedOver if |run| run.is_fast() && run.spec.ram == Ram::Preallocated,
    MemoryMappedByFile if |run| run.is_fast() && run.on_iommufd(),
    BarMappedAsDmaBuf if |run| run.is_fast() && run.on_iommufd(),
    // By address, iommufd maps no device memory.
    OneWarning if |run| !run.is_fast() && run.on_iommufd(),
    CprBlocked if |run| run.is_fast() && run.spec.qemu == QemuSeries::V10_0,
    CprNotBlockedAfterUnplug if |run| run.is_fast() && run.spec.qemu == QemuSeries::V10_0,
    NothingMappedAfterUnplug,
    UnmappedBeforeLeaving,
    DataAfterPlug,
    MappingsAfterPlug,
    NoThreadsAfterPlug,
    Quit if |run| run.spec.host.is_arm64(),
}

pub fn specs() -> Vec<ScenarioSpec> {
    let usual = ScenarioSpec {
        modes: ALL_MODES,
        // Memory on both sides of 4 GiB: the machine has 2 GiB below.
        l2_memory_mib: 3072,
        disk_mib: 64,
        writes_disk: true,
        l2_boots: true,
        timed: true,
        // What is touched first on a machine that is virtual itself costs a fault in its host. Without this, the run that
        // happens to be first is the slowest.
        prealloc_l1: true,
        limit: Duration::from_secs(900),
        ..ScenarioSpec::plain(
            NAME,
            "boot, data through a passthrough NVMe, reset, data again, unplug",
            Check::expected_names,
        )
    };
    let mut specs = vec![usual.clone()];
    // One comparison of times is enough; the others may run at the same time.
    specs.extend(Host::X86.into_iter().filter(|host| *host != usual.host).map(|host| ScenarioSpec {
        host,
        timed: false,
        prealloc_l1: false,
        modes: PATCHED,
        ram: if host == Host::AMD_NEWEST { Ram::Preallocated } else { Ram::Usual },
        // One host is enough: a large firmware takes long in an emulated machine.
        firmware: if host == Host::INTEL_NEWEST { Firmware::Ovmf } else { Firmware::SeaBios },
        // The newest kernel is built without seccomp.
        sandboxed: host == Host::AMD_DEBIAN,
        traces_iommu: host.iommu == Iommu::Virtio,
        ..usual.clone()
    }));
    specs.push(on_arm64(&usual));
    let newest: Vec<ScenarioSpec> =
        specs.iter().filter(|spec| spec.host.kernel == Kernel::Newest).cloned().collect();
    specs.extend(newest.into_iter().map(|spec| {
        let modes: &[Mode] = if spec.host == Host::INTEL_NEWEST { ALL_MODES } else { PATCHED };
        ScenarioSpec { modes, ..spec.through_iommufd(spec.host) }
    }));
    specs
}

/// The same on arm64, where QEMU's RAM is in one piece that begins at 1 GiB: it is mapped in two entries. It runs only where
/// it is named, because a whole run has no time to build another QEMU.
fn on_arm64(usual: &ScenarioSpec) -> ScenarioSpec {
    ScenarioSpec {
        host: Host::SMMU_DEBIAN,
        timed: false,
        prealloc_l1: false,
        modes: PATCHED,
        l2_memory_mib: 1536,
        only_by_name: true,
        ..usual.clone()
    }
}
