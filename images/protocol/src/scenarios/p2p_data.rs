//! A device reads and writes another device's BAR, which is mapped as a whole.

use crate::checks::checks;
use crate::host::{Host, Kernel};
use crate::job::Ram;
use crate::spec::{Device, Run, ScenarioSpec};

pub const NAME: &str = "p2p-data";

checks! {
    #[serde(rename_all = "kebab-case")]
    MappingsAfterRealize,
    MappingsAfterData,
    FlatViewAfterData,
    MappingsAtEveryCommit,
    NoThreadsAfterData,
    Data if maps_bars,
    BarsInWholeEntries if maps_bars,
    OneWarning if |run| run.on_iommufd(),
    WitnessesAgree,
    StatsAgree if |run| run.is_fast(),
    BarsNotPopulated if |run| run.is_fast(),
}

/// iommufd takes BARs as dma-bufs only, which only the library exports.
fn maps_bars(run: &Run) -> bool {
    run.on_type1() || run.is_fast()
}

pub fn specs() -> Vec<ScenarioSpec> {
    let mut specs: Vec<ScenarioSpec> =
        Host::X86.into_iter().filter(|host| host.iommu.remaps_interrupts()).map(on).collect();
    specs.push(on(Host::INTEL_NEWEST).through_iommufd(Host::INTEL_NEWEST));
    specs
}

/// A kernel before 6.15 maps each page of a BAR by itself, which takes half a second for a GiB in an emulated machine:
/// there the BAR is small. Every kernel unmaps it so: the large one is on one host only.
fn on(host: Host) -> ScenarioSpec {
    let mib = if host.kernel == Kernel::Newest { 4096 } else { 2048 };
    let mut devices = vec![Device::Edu, Device::File { mib }];
    if host == Host::INTEL_NEWEST {
        devices.push(Device::Empty { mib: 64 << 10 });
    }
    ScenarioSpec {
        host,
        // In base pages it takes several times as long to map: here there is less of it than in the main scenario.
        ram: if host == Host::AMD_DEBIAN { Ram::Memfd } else { Ram::Usual },
        devices,
        l2_boots: true,
        ..ScenarioSpec::plain(
            NAME,
            "a device reads and writes another's BAR, which is mapped as a whole",
            Check::expected_names,
        )
    }
}
