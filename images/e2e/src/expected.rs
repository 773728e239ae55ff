//! What each run must have looked at.

use vfio_fast_protocol::job::{Container, Firmware, Mode, Ram, Scenario};
use vfio_fast_protocol::record::Start;

use super::machine::{Kernel, Machine};
use super::scenario::{PATCHED, Plan};

/// What is looked at where a device reaches another's BAR.
const P2P: [&str; 2] = ["data", "bars-in-whole-entries"];

impl Plan {
    /// The checks a run has to have made; one that is missing has failed.
    pub fn expected_checks(&self, mode: Mode) -> Vec<String> {
        let mut names = match self.scenario {
            Scenario::Starts => return self.expected_of_starts(),
            Scenario::Conformance => return self.tests(),
            Scenario::Maps => return vec!["measured".to_owned()],
            Scenario::Nvme => vec![
                "mappings-after-realize",
                "flat-view-after-realize",
                "no-threads-after-realize",
                "mappings-after-boot",
                "mappings-after-reset",
                "no-threads-after-reset",
                "mappings-at-every-commit",
                "data",
                "nothing-mapped-after-unplug",
                "unmapped-before-leaving",
                "data-after-plug",
                "mappings-after-plug",
                "no-threads-after-plug",
            ],
            Scenario::Errors => vec![
                "realize-error",
                "alive-after-refusal",
                "nothing-mapped-after-refusal",
                "no-threads-after-refusal",
                "nothing-locked-after-refusal",
                "mappings-after-second-try",
                "runtime-error",
            ],
            Scenario::Hotplug => vec![
                "mappings-after-plug",
                "mappings-after-unplug",
                "memory-freed",
                "mappings-after-reuse",
                "no-threads-after-reuse",
                "mappings-at-every-commit",
                "mapped-twice-unmapped-once",
            ],
            Scenario::P2pData => vec![
                "mappings-after-realize",
                "mappings-after-data",
                "flat-view-after-data",
                "mappings-at-every-commit",
                "no-threads-after-data",
            ],
            Scenario::P2pRange => {
                vec![
                    "sections-traced",
                    "flat-view-after-firmware",
                    "no-threads-after-firmware",
                    "alive",
                    "same-after-resets",
                    "one-warning",
                ]
            }
            Scenario::TwoDevices => vec![
                "mappings-first-device",
                "mappings-both-devices",
                "second-joins-untouched",
                "mappings-one-left",
                "first-leaves-untouched",
                "nothing-mapped-after-both-left",
                "unmapped-before-leaving",
                "mappings-come-back",
                "no-threads-come-back",
                "mappings-daemon",
                "no-threads-daemon",
                "daemon-maps-itself",
                "quit",
                "killed",
                "mappings-after-kill",
            ],
            Scenario::Viommu => vec![
                "mappings-after-realize",
                "switched-boot",
                "data-boot",
                "no-threads-boot",
                "switched-reset",
                "data-reset",
                "no-threads-reset",
                "second-unmapped",
                "first-left-alone",
                "data-after-unplug",
                "events-one-to-one",
            ],
            Scenario::VirtioMem => vec![
                "mappings-after-realize",
                "blocks-after-realize",
                "data-boot",
                "mappings-after-plug",
                "blocks-after-plug",
                "mappings-after-unplug",
                "blocks-after-unplug",
                "unplugged-alone",
                "mappings-after-plug-again",
                "blocks-after-plug-again",
                "plugged-alone",
                "unplugged-not-filled",
                "no-threads-after-plug-again",
                "rolled-back",
                "mappings-after-refusal",
                "blocks-after-refusal",
                "locked-after-refusal",
                "alive-after-refusal",
                "mappings-after-raise",
                "blocks-after-raise",
                "data-reset",
                "mappings-after-reset",
                "blocks-after-reset",
                "no-threads-after-reset",
            ],
        };
        if self.scenario != Scenario::Errors {
            names.push("witnesses-agree");
        }
        if self.traces_iommu() {
            names.push("iommu-agrees");
        }
        if (self.scenario, self.container) == (Scenario::Errors, Container::Type1) {
            names.push("locked-as-mapped");
        }
        match (self.scenario, self.container, mode) {
            (Scenario::Nvme, Container::Iommufd, Mode::Fast) => {
                names.extend(["memory-mapped-by-file", "bar-mapped-as-dma-buf"]);
            }
            (Scenario::Nvme, Container::Iommufd, _) => names.push("one-warning"),
            (Scenario::P2pData, Container::Type1, _) => names.extend(P2P),
            (Scenario::P2pData, Container::Iommufd, Mode::Fast) => {
                names.extend(P2P);
                names.push("one-warning");
            }
            (Scenario::P2pData, Container::Iommufd, _) => names.push("one-warning"),
            _ => {}
        }
        if (self.scenario, self.container, mode) == (Scenario::Viommu, Container::Type1, Mode::Fast) {
            names.push("unmapped-with-bitmap");
        }
        if self.firmware == Firmware::Ovmf {
            names.push("booted-by-ovmf");
        }
        if self.sandboxed {
            names.push("threads-in-sandbox");
        }
        if (self.ram, mode) == (Ram::Preallocated, Mode::Fast) {
            names.push("preallocated-passed-over");
        }
        match (self.scenario, mode) {
            (Scenario::Nvme, Mode::Fast) => {
                names.extend(["stats-agree", "ram-amplification", "equal-pieces-untouched"]);
            }
            (Scenario::Hotplug | Scenario::Viommu | Scenario::VirtioMem, Mode::Fast) => {
                names.push("stats-agree")
            }
            (Scenario::P2pData, Mode::Fast) => names.extend(["stats-agree", "bars-not-populated"]),
            (Scenario::TwoDevices, Mode::Fast) => {
                names.extend(["mixed-refused-through", "mixed-refused-without", "default-is-builtin"]);
            }
            _ => {}
        }
        names.into_iter().map(str::to_owned).collect()
    }

    /// The conformance tests of the host: all that its kernel can answer.
    pub fn tests(&self) -> Vec<String> {
        if self.scenario != Scenario::Conformance {
            return Vec::new();
        }
        let mut names = vec!["type1_answers_as_type1", "type1_tells_of_dirty_pages"];
        if self.machine.kernel == Kernel::Newest {
            names.extend([
                "iommufd_answers_as_iommufd",
                "a_bar_is_mapped_while_it_decodes",
                "the_imitation_answers_as_iommufd",
                "callers_of_iommufd_never_see_each_other",
            ]);
        }
        // Only the driver of VT-d, and only when built to, shows its page tables.
        if self.machine == Machine::USUAL_NEWEST {
            names.extend([
                "iommufd_holds_nothing_stale_after_a_failure",
                "type1_holds_nothing_stale_after_a_failure",
            ]);
        }
        names.into_iter().map(str::to_owned).collect()
    }

    fn expected_of_starts(&self) -> Vec<String> {
        let mut names = Vec::new();
        for &(memory, round) in &self.starts {
            for &mode in PATCHED {
                let start = Start::name_of(memory, mode, round);
                names.extend((mode == Mode::Fast).then(|| format!("stats-{start}")));
                names.push(format!("mappings-{start}"));
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use vfio_fast_protocol::job::Memory;

    use super::*;
    use crate::scenario::plans;

    #[test]
    fn every_start_is_checked() {
        let plan = Plan::starts(1024, vec![(Memory::Anon4k, 0), (Memory::MemfdThp, 1)]);
        let names = plan.expected_checks(Mode::Fast);
        // Both modes' mappings, and the library's own counters.
        assert_eq!(names.len(), 2 * 3);
        assert!(names.contains(&"stats-memfd-thp-fast-1".to_owned()), "{names:?}");
    }

    #[test]
    fn every_scenario_expects_checks() {
        for plan in plans() {
            for &mode in plan.modes {
                assert!(!plan.expected_checks(mode).is_empty(), "{} {mode:?}", plan.name());
            }
        }
    }
}
