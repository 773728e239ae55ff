//! L2's RAM does not fit where it is to come from: a file system that is too small, one whose pages cannot be pinned, a
//! cgroup that may use less.

use crate::checks::checks;
use crate::host::{Host, Kernel};
use crate::job::Mode;
use crate::spec::{Device, Label, Run, ScenarioSpec};

pub const NAME: &str = "limits";

checks! {
    #[serde(rename_all = "kebab-case")]
    NothingMapped,
    NoThreads,
    TmpfsRefused,
    TmpfsExplained,
    TmpfsUse,
    TmpfsPlugRefused,
    Ext4Refused if has_disk,
    Ext4Explained if has_disk,
    Ext4Use if has_disk,
    Ext4PlugRefused if has_disk,
    CgroupEnd,
    CgroupUse,
    CgroupSharedEnd,
    CgroupSharedUse,
}

/// Only the newest kernel has ext4 built in.
fn has_disk(run: &Run) -> bool {
    run.spec.host.kernel == Kernel::Newest
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        // One boot starts QEMU in both modes.
        modes: &[Mode::Fast],
        label: Label::Host,
        l2_memory_mib: 256,
        kills_for_memory: true,
        ..ScenarioSpec::plain(
            NAME,
            "RAM that a file system or a cgroup cannot give: ends as stock does, and says why",
            Check::expected_names,
        )
    };
    let iommufd = ScenarioSpec {
        devices: vec![Device::Nvme, Device::Ext4 { mib: 512 }],
        ..type1.through_iommufd(Host::INTEL_NEWEST)
    };
    vec![type1, iommufd]
}
