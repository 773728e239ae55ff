//! The engine's conformance tests on real kernels: no QEMU, no L2. A check is a test of the same name.

use crate::checks::checks;
use crate::host::{Host, Kernel};
use crate::job::Mode;
use crate::machine::Machine;
use crate::spec::{Device, Label, Program, Run, ScenarioSpec};

pub const NAME: &str = "conformance";

checks! {
    #[serde(rename_all = "snake_case")]
    Type1AnswersAsType1,
    Type1TellsOfDirtyPages,
    Type1HandsEntriesOver,
    Type1IsClosedAfterItsLastGroupHasLeft,
    IommufdAnswersAsIommufd if has_iommufd,
    ABarIsMappedWhileItDecodes if has_iommufd,
    TheImitationAnswersAsIommufd if has_iommufd,
    CallersOfIommufdNeverSeeEachOther if has_iommufd,
    IommufdHoldsNothingStaleAfterAFailure if shows_page_tables,
    Type1HoldsNothingStaleAfterAFailure if shows_page_tables,
    AllocationsForType1MayFail if shows_page_tables,
    AllocationsForIommufdMayFail if shows_page_tables,
    ADeviceOfType1LosesOnlyWhatIsCut,
    ADeviceOfIommufdLosesOnlyWhatIsCut if has_iommufd,
    DevicesOfType1ReachOnlyWhatIsMapped,
    DevicesOfIommufdReachOnlyWhatIsMapped if has_iommufd,
    SuperpagesAtZeroAreOneEntry if shows_page_tables,
    ReplacedPagesAreMappedAgain if shows_page_tables,
    ProcessesKilledOnType1LeaveNothing,
    ProcessesKilledOnIommufdLeaveNothing if has_iommufd,
    KilledAdoptersLoseNothing,
    Type1NamesItsLimits,
    IommufdNamesItsRanges if has_iommufd,
    Type1IsExactAtEachBoundary,
    IommufdIsExactAtEachBoundary if has_iommufd,
    Type1LeavesNothingWhenMemoryRunsOut if has_small_pages,
    IommufdLeavesNothingWhenMemoryRunsOut if has_iommufd,
    Type1CountsEachProcess,
    IommufdCountsAllProcessesOfAUser if has_iommufd,
    IommufdCanCountEachProcess if has_iommufd,
    Type1NamesABrokenPage,
    IommufdNamesABrokenPage if has_iommufd,
}

fn has_iommufd(run: &Run) -> bool {
    run.spec.host.kernel == Kernel::Newest
}

/// Its huge pages have 2 MiB.
fn has_small_pages(run: &Run) -> bool {
    run.spec.host.page_kib() == 4
}

/// Only the driver of VT-d, and only when built to, shows its page tables.
fn shows_page_tables(run: &Run) -> bool {
    run.spec.host == Host::INTEL_NEWEST
}

pub fn specs() -> Vec<ScenarioSpec> {
    let on = |host| ScenarioSpec {
        host,
        modes: &[Mode::Fast],
        label: Label::Host,
        l2_memory_mib: 0,
        // Two processes have one each. All of them attack one container at once, because each access takes a tenth of
        // a second.
        devices: vec![Device::Edu; 8],
        device_faults: true,
        kills_for_memory: true,
        program: Program::Conformance,
        // Page tables are looked at for pages of each size, also for one of 1 GiB.
        machine: (host == Host::INTEL_NEWEST)
            .then(|| Machine { kernel_options: "hugepagesz=1G hugepages=1", ..Machine::of_mib(3072) }),
        ..ScenarioSpec::plain(
            NAME,
            "type1 and iommufd answer as the library's model of them does",
            Check::expected_names,
        )
    };
    Host::all().map(on).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PROGRAM: &str =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../engine/tests/conformance/main.rs"));
    /// How the names of those begin that other tests start as processes.
    const PROCESS: &str = "a_process_that_";

    /// No test that needs a kernel is left out here.
    #[test]
    fn every_ignored_test_is_a_check() {
        let ignored = PROGRAM.split("#[ignore").skip(1).filter_map(|rest| {
            let (_, rest) = rest.split_once("\nfn ")?;
            Some(rest.split_once('(')?.0)
        });
        let tests: BTreeSet<_> =
            ignored.filter(|name| !name.starts_with(PROCESS)).map(str::to_owned).collect();
        let of = |spec| Check::expected_names(&Run { spec, mode: Mode::Fast });
        let checks: BTreeSet<_> = specs().iter().flat_map(of).collect();
        assert_eq!(checks, tests);
    }
}
