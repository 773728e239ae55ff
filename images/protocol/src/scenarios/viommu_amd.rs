//! L2 has an AMD IOMMU of its own, and moves data through it. QEMU 10.2 is the first that emulates one for VFIO devices.

use crate::job::{Container, Mode};
use crate::qemu::QemuSeries;
use crate::scenarios::viommu;
use crate::spec::ScenarioSpec;

pub const NAME: &str = "viommu-amd";

pub fn specs() -> Vec<ScenarioSpec> {
    let like = viommu::specs();
    let amd = |spec: ScenarioSpec| ScenarioSpec {
        scenario: NAME,
        what: "L2 has an AMD IOMMU of its own, and moves data through it",
        qemu: QemuSeries::V10_2,
        modes: &[Mode::Fast],
        only_by_name: spec.container == Container::Iommufd,
        ..spec
    };
    like.into_iter().map(amd).collect()
}
