//! One scenario a file: the hosts it runs on, its devices and limits, and the names of its checks.
//! The file of the same name in the agent has the story. `build.rs` lists the files.

use crate::newer_qemu;
use crate::spec::ScenarioSpec;

/// A file of this folder.
struct File {
    name: &'static str,
    specs: fn() -> Vec<ScenarioSpec>,
}

include!(concat!(env!("OUT_DIR"), "/scenarios.rs"));

/// Every run of `cargo xtask e2e`, without its modes.
pub fn all() -> Vec<ScenarioSpec> {
    let mut specs: Vec<ScenarioSpec> = FILES.iter().flat_map(|file| (file.specs)()).collect();
    specs.extend(newer_qemu::specs(&specs));
    specs
}

/// The names of all scenarios.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|file| file.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use crate::job::Mode;

    #[test]
    fn a_spec_is_named_as_its_scenario() {
        for file in FILES {
            assert!((file.specs)().iter().all(|spec| spec.scenario == file.name), "{}", file.name);
        }
    }

    #[test]
    fn every_run_has_a_name_of_its_own_and_expects_checks() {
        let mut runs: Vec<String> = Vec::new();
        for spec in all() {
            assert!(!spec.modes.is_empty(), "{}", spec.name());
            for &mode in spec.modes {
                assert!(!spec.expected_checks(mode).is_empty(), "{} {mode:?}", spec.name());
                runs.push(spec.run_name(mode));
            }
        }
        let count = runs.len();
        runs.sort();
        runs.dedup();
        assert_eq!(runs.len(), count);
    }

    #[test]
    fn checks_depend_on_mode_and_container() {
        let expects = |name: &str, mode, check: &str| {
            let spec = all().into_iter().find(|spec| spec.name() == name).unwrap();
            spec.expected_checks(mode).iter().any(|expected| expected == check)
        };
        assert!(expects("nvme-intel-debian", Mode::Fast, "stats-agree"));
        assert!(!expects("nvme-intel-debian", Mode::Stock, "stats-agree"));
        assert!(expects("nvme-intel-newest-iommufd", Mode::Stock, "one-warning"));
        assert!(!expects("nvme-intel-newest-iommufd", Mode::Fast, "one-warning"));
        assert!(!expects("nvme-intel-debian", Mode::Stock, "one-warning"));
        assert!(expects("nvme-amd-debian", Mode::Stock, "threads-in-sandbox"));
        assert!(expects("errors-intel-debian", Mode::Stock, "locked-as-mapped"));
        assert!(!expects("errors-intel-newest-iommufd", Mode::Stock, "locked-as-mapped"));
        assert!(expects("conformance-intel-newest", Mode::Fast, "type1_holds_nothing_stale_after_a_failure"));
        assert!(!expects("conformance-amd-newest", Mode::Fast, "type1_holds_nothing_stale_after_a_failure"));
    }

    /// The words in backquotes of docs/SECURITY.md that are names of checks: `*` stands for any characters.
    #[test]
    fn security_names_checks_that_exist() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/SECURITY.md");
        let text = std::fs::read_to_string(path).unwrap();
        let mut known: Vec<String> = Vec::new();
        for spec in all() {
            spec.modes.iter().for_each(|mode| known.extend(spec.expected_checks(*mode)));
        }
        let promises = text.split("## What is promised").nth(1).unwrap();
        let promises = promises.split("## What is not promised").next().unwrap();
        let quoted = promises.split('`').skip(1).step_by(2);
        let is_check = |word: &&str| {
            word.contains('-') && word.chars().all(|c| c.is_ascii_lowercase() || c == '-' || c == '*')
        };
        let exists = |word: &&str| {
            let (start, end) = word.split_once('*').unwrap_or((word, ""));
            known.iter().any(|name| match word.contains('*') {
                true => name.starts_with(start) && name.ends_with(end),
                false => name == word,
            })
        };
        let words: Vec<&str> = quoted.filter(is_check).collect();
        assert!(words.len() > 20, "{words:?}");
        let missing: Vec<&&str> = words.iter().filter(|word| !exists(word)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn the_main_scenario_runs_on_every_host_that_runs_a_guest() {
        let hosts = all().into_iter().filter(|spec| spec.scenario == nvme::NAME);
        let hosts: Vec<String> = hosts.map(|spec| spec.host.to_string()).collect();
        let mut runs_guests = Host::X86.iter().chain([&Host::SMMU_DEBIAN]);
        assert!(runs_guests.all(|host| hosts.contains(&host.to_string())), "{hosts:?}");
    }
}
