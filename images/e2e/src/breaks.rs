//! Tests of the tests: each break is a fault that is put into a copy of the tree. A run with it must fail, and the check
//! that is named for it must be among those that do.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vfio_fast_assets::cache::remove_dir;
use vfio_fast_assets::progress::{run_logged, step};
use vfio_fast_assets::{interrupt, paths, tree};

/// A fault, and the check that finds it.
struct Break {
    name: &'static str,
    /// What is wrong with it.
    what: &'static str,
    file: &'static str,
    /// Code that occurs once in the file, and what replaces it.
    from: &'static str,
    to: &'static str,
    /// The run that finds it, and its check.
    run: &'static str,
    check: &'static str,
}

const BREAKS: &[Break] = &[
    Break {
        name: "stale-mapping",
        what: "an unmap succeeds without a call to the kernel",
        file: "engine/src/backend/iommufd.rs",
        from: "enoent_as_zero(iommufd::unmap(self.fd.as_fd(), self.ioas_id, range))?",
        to: "range.length()",
        run: "two-devices-intel-newest-iommufd-fast",
        check: "nothing-mapped-after-both-left",
    },
    Break {
        name: "stale-memory",
        what: "memory devices that were unplugged stay mapped",
        file: "engine/src/backend/type1.rs",
        from: "            type1::unmap(container, Extent::Bytes(start, length))",
        to: "            if length >= 64 << 20 { Ok(length) } else { type1::unmap(container, Extent::Bytes(start, length)) }",
        run: "soak-intel-debian-fast",
        check: "mappings-throughout",
    },
    Break {
        name: "reachable-memory",
        what: "devices of a guest reach memory devices that were unplugged",
        file: "engine/src/backend/type1.rs",
        from: "            type1::unmap(container, Extent::Bytes(start, length))",
        to: "            if length >= 64 << 20 { Ok(length) } else { type1::unmap(container, Extent::Bytes(start, length)) }",
        run: "guest-attacks-intel-debian-fast",
        check: "removed-dimm",
    },
    Break {
        name: "written-rom",
        what: "devices of a guest may write to its firmware",
        file: "engine/src/sys/iommufd.rs",
        from: "MAP_READABLE | if perm.is_writable() {",
        to: "MAP_READABLE | if true || perm.is_writable() {",
        run: "guest-attacks-intel-newest-iommufd-fast",
        check: "read-only-firmware",
    },
    Break {
        name: "swallowed-error",
        what: "a map call that the kernel refuses counts as made",
        file: "engine/src/backend/iommufd.rs",
        from: "iommufd::map(self.fd.as_fd(), self.ioas_id, mapping)",
        to: "iommufd::map(self.fd.as_fd(), self.ioas_id, mapping).or(Ok(()))",
        run: "conformance-intel-newest",
        check: "allocations_for_iommufd_may_fail",
    },
    Break {
        name: "writable-rom",
        what: "devices may write to what they may only read",
        file: "engine/src/backend/type1.rs",
        from: "hva, length, perm.is_writable())",
        to: "hva, length, true || perm.is_writable())",
        run: "two-devices-intel-debian-fast",
        check: "mappings-first-device",
    },
    Break {
        name: "short-mapping",
        what: "the last page of an entry is not mapped",
        file: "engine/src/backend/type1.rs",
        from: "type1::map(self.container.as_fd(), start, hva, length,",
        to: "type1::map(self.container.as_fd(), start, hva, length - 4096 * u64::from(length > 4096),",
        run: "two-devices-intel-debian-fast",
        check: "mappings-first-device",
    },
    Break {
        name: "mapped-again",
        what: "entries that are right are unmapped and mapped again",
        file: "engine/src/reconcile/plan.rs",
        from: "keeps(entry, wanted.covers(entry, *range))",
        to: "keeps(entry, false)",
        run: "nvme-intel-newest-iommufd-fast",
        check: "equal-pieces-untouched",
    },
    Break {
        name: "wrong-count",
        what: "the library counts a map call too many",
        file: "engine/src/transaction/counters.rs",
        from: "counters.map_calls.add(executed.map_calls)",
        to: "counters.map_calls.add(executed.map_calls + 1)",
        run: "nvme-intel-newest-iommufd-fast",
        check: "stats-agree",
    },
    Break {
        name: "hidden-call",
        what: "map calls are missing in the timeline",
        file: "engine/src/execute/run.rs",
        from: "timeline::call(\"map\", entry.range, || self.backend.map(&entry.mapping(), object))",
        to: "self.backend.map(&entry.mapping(), object)",
        run: "two-devices-intel-debian-fast",
        check: "timeline-agrees",
    },
    Break {
        name: "other-data",
        what: "the guest writes other bytes than it is asked to",
        file: "images/agent/src/l2/disk.rs",
        from: "test_data::fill(seed, at, chunk);\n            disk.write_all_at",
        to: "test_data::fill(seed, at + 8, chunk);\n            disk.write_all_at",
        run: "nvme-intel-newest-iommufd-fast",
        check: "disk",
    },
    Break {
        name: "refused-map",
        what: "a map that the kernel refuses counts as mapped",
        file: "engine/src/backend/type1.rs",
        from: "type1::map(self.container.as_fd(), start, hva, length, perm.is_writable())",
        to: "type1::map(self.container.as_fd(), start, hva, length, perm.is_writable()).or(Ok(()))",
        run: "failing-kernel-intel-newest-fast",
        check: "mappings-throughout",
    },
    Break {
        name: "ended-process",
        what: "a commit that fails ends the process",
        file: "engine/src/transaction/rollback.rs",
        from: "state.wanted.roll_back_additions();",
        to: "std::process::exit(3);",
        run: "failing-kernel-intel-newest-fast",
        check: "ends-as-expected",
    },
    Break {
        name: "sound-kernel",
        what: "no allocation of the kernel fails",
        file: "images/agent/src/l1/scenarios/failing_kernel.rs",
        from: "failing_allocations::start(interval, times)?;",
        to: "failing_allocations::start(interval, 0)?;",
        run: "failing-kernel-intel-newest-fast",
        check: "each-outcome-seen",
    },
    Break {
        name: "untold-pool",
        what: "an error does not say that a pool of huge pages is empty",
        file: "engine/src/explain/memory.rs",
        from: "file_system::pool(page).filter(full(page))?",
        to: "file_system::pool(page).filter(full(page)).filter(|_| page == 0)?",
        run: "conformance-intel-debian",
        check: "type1_leaves_nothing_when_memory_runs_out",
    },
    Break {
        name: "short-memory",
        what: "QEMU's DMA mapper writes a byte behind memory that it has allocated",
        file: "qemu-patches/10.0/0005-hw-vfio-Add-a-DMA-mapper-that-uses-libvfio_fast.patch",
        from: "+    VFIODMAMapperSection *section = g_new(VFIODMAMapperSection, 1);",
        to: "+    VFIODMAMapperSection *section = g_malloc(sizeof(*section) - 1);",
        run: "two-devices-intel-debian-fast",
        check: "ran-to-its-end",
    },
];

/// The names of all breaks, for the command line.
pub fn names() -> impl Iterator<Item = &'static str> {
    BREAKS.iter().map(|fault| fault.name)
}

/// Makes each of these breaks in turn.
pub fn run(names: &[String]) -> Result<()> {
    let mut survived = Vec::new();
    for fault in BREAKS.iter().filter(|fault| names.iter().any(|name| name == fault.name)) {
        match fault.run() {
            Ok(failed) => println!("{:16} {}: found by {}", fault.name, fault.what, failed.join(", ")),
            Err(error) => {
                println!("{:16} {}: {error:#}", fault.name, fault.what);
                survived.push(fault.name);
            }
        }
    }
    if !survived.is_empty() {
        bail!("not found: {}", survived.join(", "));
    }
    Ok(())
}

impl Break {
    /// The checks that failed with it.
    fn run(&self) -> Result<Vec<String>> {
        let folder = paths::target().join("break");
        let copy = folder.join("tree");
        remove_dir(&copy)?;
        tree::copy_to(&copy)?;
        let file = copy.join(self.file);
        let text = fs::read_to_string(&file)?;
        fs::write(&file, self.applied(&text)?)?;
        let log = folder.join(format!("{}.log", self.name));
        let target = folder.join("target");
        let mut e2e = Command::new(paths::cargo());
        e2e.current_dir(&copy).args(["xtask", "e2e", "--only", self.run]);
        // Of faults in QEMU's code, sanitizers find those that checks cannot see.
        if self.file.starts_with("qemu-patches/") {
            e2e.arg("--sanitized");
        }
        e2e.env("CARGO_TARGET_DIR", &target).env("CARGO_TERM_COLOR", "never");
        // What is built runs once, so it is not worth the time that these take.
        e2e.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
        let _ = fs::remove_file(target.join("e2e/latest"));
        let what = format!("{} in {}", self.name, self.run);
        let has_failed = step(&what, &log, |log| Ok(run_logged(&mut e2e, log).is_err()))?;
        ensure!(!interrupt::is_interrupted(), "interrupted");
        let results = target.join("e2e/latest/results.json");
        let results = fs::read_to_string(&results).context("the run ended before there were results")?;
        let failed = failed(&results)?;
        ensure!(has_failed, "the run passed");
        ensure!(
            failed.iter().any(|check| check == self.check),
            "{} did not fail, only {}",
            self.check,
            failed.join(", ")
        );
        Ok(failed)
    }

    fn applied(&self, text: &str) -> Result<String> {
        let count = text.matches(self.from).count();
        ensure!(count == 1, "{} has the code of the break {} {count} times", self.file, self.name);
        Ok(text.replacen(self.from, self.to, 1))
    }
}

/// The names of the checks that failed, in any run.
fn failed(results: &str) -> Result<Vec<String>> {
    let runs: Vec<Value> = serde_json::from_str(results)?;
    let checks = runs.iter().flat_map(|run| run["checks"].as_array().into_iter().flatten());
    let failed = checks.filter(|check| check["ok"] == false).filter_map(|check| check["name"].as_str());
    Ok(failed.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario;

    #[test]
    fn each_break_fits_the_tree_and_has_a_run_that_makes_its_check() {
        for fault in BREAKS {
            let text = fs::read_to_string(paths::root().join(fault.file)).unwrap();
            assert_ne!(fault.applied(&text).unwrap(), text, "{}", fault.name);
            let specs = scenario::chosen(&[fault.run.to_owned()]).unwrap();
            let [spec] = &specs[..] else { panic!("{}: {} runs", fault.name, specs.len()) };
            let mut checks = spec.expected_checks(spec.modes[0]);
            checks.extend(spec.writes_disk.then(|| "disk".to_owned()));
            checks.push("ran-to-its-end".to_owned());
            assert!(spec.modes.len() == 1 && checks.iter().any(|name| name == fault.check), "{}", fault.name);
        }
    }

    #[test]
    fn failed_checks_are_found_in_the_results() {
        let results = r#"[{"checks":[{"name":"a","ok":true},{"name":"b","ok":false}]},{"checks":[]}]"#;
        assert_eq!(failed(results).unwrap(), ["b"]);
    }
}
