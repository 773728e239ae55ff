//! The newest kernel's own tests of VFIO and iommufd, alone and with libvfio_fast_preload in the way of each call.

use crate::checks::checks;
use crate::host::Host;
use crate::job::Mode;
use crate::machine::Machine;
use crate::spec::{Device, Label, Program, ScenarioSpec};

pub const NAME: &str = "kernel-tests";

checks! {
    #[serde(rename_all = "kebab-case")]
    TestsPass,
    SameResultsPreloaded,
    CallsWentThrough,
}

pub fn specs() -> Vec<ScenarioSpec> {
    vec![ScenarioSpec {
        host: Host::INTEL_NEWEST,
        modes: &[Mode::Fast],
        label: Label::Host,
        l2_memory_mib: 0,
        devices: vec![Device::Edu],
        program: Program::KernelTests,
        preload: true,
        // They change with each kernel, and do not always compile.
        only_by_name: true,
        // Some tests map pages of each size.
        machine: Some(Machine {
            kernel_options: "hugepagesz=1G hugepages=1 hugepagesz=2M hugepages=64",
            ..Machine::of_mib(3072)
        }),
        ..ScenarioSpec::plain(
            NAME,
            "the kernel's own tests of VFIO and iommufd pass, and give the same results with the library preloaded",
            Check::expected_names,
        )
    }]
}
