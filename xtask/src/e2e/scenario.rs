//! What is run: the table of scenarios, and what each must have looked at.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use vfio_fast_agent::job::{Mode, Scenario};

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which.
    pub scenario: Scenario,
    /// What it shows, for `--list`.
    pub what: &'static str,
    /// The listeners it is run with.
    pub modes: &'static [Mode],
    /// RAM of L2.
    pub l2_memory_mib: u64,
    /// Size of the disk under test.
    pub disk_mib: u64,
    /// Whether L2 boots twice and writes the disk.
    pub writes_disk: bool,
    /// Whether L2's kernel runs and has a log to judge.
    pub l2_boots: bool,
    /// Time for the whole run of L1.
    pub limit: Duration,
}

const ALL_MODES: &[Mode] = &[Mode::Reference, Mode::Stock, Mode::Fast];

/// Every scenario.
const PLANS: &[Plan] = &[Plan {
    scenario: Scenario::Nvme,
    what: "boot, data through a passthrough NVMe, reset, data again, unplug",
    modes: ALL_MODES,
    l2_memory_mib: 3072,
    disk_mib: 64,
    writes_disk: true,
    l2_boots: true,
    limit: Duration::from_secs(300),
}];

impl Plan {
    /// Its name on the command line.
    pub fn name(&self) -> String {
        kebab(&self.scenario)
    }

    /// RAM of L1: L2's, and room for its own programs.
    pub fn l1_memory_mib(&self) -> u64 {
        self.l2_memory_mib + 2048
    }

    /// PCI addresses in L1 of the devices under test.
    pub fn addresses(&self) -> Vec<String> {
        vec!["0000:00:04.0".into()]
    }

    /// Arguments for L1's IOMMU and the devices under test.
    pub fn l0_devices(&self, disk: &Path) -> Vec<[String; 2]> {
        let drive = format!("if=none,id=disk,format=raw,cache=unsafe,file={}", disk.display());
        [
            // 39 bits, the default, cannot map what a guest puts above 512 GiB.
            ["-device", "intel-iommu,intremap=on,caching-mode=on,aw-bits=48"],
            ["-drive", &drive],
            ["-device", "nvme,serial=vft,drive=disk,addr=4.0"],
        ]
        .map(|pair| pair.map(str::to_owned))
        .to_vec()
    }

    /// The checks a run has to have made; one that is missing has failed.
    pub fn expected_checks(&self, mode: Mode) -> Vec<&'static str> {
        match self.scenario {
            Scenario::Nvme => {
                let mut names = vec![
                    "mappings-after-realize",
                    "flat-view-after-realize",
                    "no-threads-after-realize",
                    "mappings-after-boot",
                    "mappings-after-reset",
                    "no-threads-after-reset",
                    "data",
                    "witnesses-agree",
                    "nothing-mapped-after-unplug",
                    "unmapped-before-leaving",
                ];
                if mode == Mode::Fast {
                    names.extend(["stats-agree", "ram-amplification", "equal-pieces-untouched"]);
                }
                names
            }
            _ => Vec::new(),
        }
    }
}

/// The scenarios of these names; all without any.
pub fn chosen(names: &[String]) -> Result<Vec<Plan>> {
    let known: Vec<String> = PLANS.iter().map(Plan::name).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        bail!("there is no scenario {unknown}, only {}", known.join(", "));
    }
    let wanted = |plan: &&Plan| names.is_empty() || names.contains(&plan.name());
    Ok(PLANS.iter().filter(wanted).cloned().collect())
}

/// The name of a mode in files and results.
pub fn mode_name(mode: Mode) -> String {
    kebab(&mode)
}

/// The names serde gives are the names everywhere.
fn kebab(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).expect("a plain enum");
    value.as_str().expect("a plain enum is a string").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose() {
        assert_eq!(chosen(&[]).unwrap().len(), PLANS.len());
        assert_eq!(chosen(&["nvme".into()]).unwrap()[0].scenario, Scenario::Nvme);
        assert!(chosen(&["nvmee".into()]).unwrap_err().to_string().contains("nvme"));
    }

    #[test]
    fn every_scenario_expects_checks() {
        for plan in PLANS {
            for &mode in plan.modes {
                assert!(!plan.expected_checks(mode).is_empty(), "{} {mode:?}", plan.name());
            }
        }
    }
}
