//! Runs QEMU's own tests on unpatched QEMU, on patched QEMU without the library, and with it, and compares the results.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, ensure};

use vfio_fast_assets::cache::remove_dir;
use vfio_fast_assets::progress::{run_logged, say};
use vfio_fast_assets::qemu::{Kind, own_tests};
use vfio_fast_protocol::qemu::QemuSeries;
use vfio_fast_protocol::tap::{self, Outcome, Outcomes};

/// The tests of devices, with a QEMU whose processor is stopped or runs a few instructions: IOMMUs, PCI, virtio (qos-test),
/// each device's and machine's properties, ACPI tables (DMAR, IVRS and VIOT among them), QMP, HMP, migration.
const QTESTS: [&str; 12] = [
    "bios-tables-test",
    "device-introspect-test",
    "device-plug-test",
    "drive_del-test",
    "intel-iommu-test",
    "ivshmem-test",
    "migration-test",
    "q35-test",
    "qmp-cmd-test",
    "qmp-test",
    "qos-test",
    "test-hmp",
];

/// One of devices that Debian's 10.0 has, but not its 10.2.
const QTEST_OF_10_0: &str = "amd-iommu-test";

/// The unit tests of what VFIO and virtio-iommu use.
const UNIT_TESTS: [&str; 2] = ["test-interval-tree", "test-resv-mem"];

/// The functional tests that need no image of a guest.
const FUNCTIONAL_TESTS: [&str; 5] = [
    "test_empty_cpu_model.py",
    "test_mem_addr_space.py",
    "test_pc_cpu_hotplug_props.py",
    "test_version.py",
    "test_virtio_version.py",
];

/// What ends bios-tables-test with the firmware of Debian: tables with an address that firmware has chosen.
const SKIPPED: [&str; 2] = ["/x86_64/acpi/piix4/dimmpxm", "/x86_64/acpi/q35/dimmpxm"];

/// What counts as a test of each program: that it ends by itself, after at least one other test.
const ENDS: &str = " ends";
/// How many programs run at a time.
const THREADS: usize = 2;

pub fn check(log: &Path) -> Result<()> {
    let mut differences = Vec::new();
    for of in QemuSeries::ALL {
        let results = |kind| tests(of, kind, log);
        let stock = results(Kind::Stock)?;
        say(&format!("    QEMU {of}, unpatched: {}", counts(&stock)));
        let silent = silent(of, &stock);
        ensure!(silent.is_empty(), "QEMU {of}, unpatched, passes no test of {}", silent.join(", "));
        for kind in [Kind::Off, Kind::On] {
            let patched = results(kind)?;
            say(&format!("    QEMU {of}, {}: {}", kind.name(), counts(&patched)));
            let found = compare(&stock, &patched);
            differences.extend(found.into_iter().map(|what| format!("{of} {}: {what}", kind.name())));
        }
    }
    ensure!(differences.is_empty(), "unlike unpatched QEMU:\n{}", differences.join("\n"));
    Ok(())
}

fn qtests(of: QemuSeries) -> Vec<&'static str> {
    let more = (of == QemuSeries::V10_0).then_some(QTEST_OF_10_0);
    QTESTS.into_iter().chain(more).collect()
}

fn counts(results: &Outcomes) -> String {
    let count = |wanted| results.values().filter(|outcome| **outcome == wanted).count();
    let (passed, skipped) = (count(Outcome::Passed), count(Outcome::Skipped));
    let failed: Vec<&str> =
        results.iter().filter(|(_, o)| **o == Outcome::Failed).map(|(name, _)| name.as_str()).collect();
    let list = if failed.is_empty() { String::new() } else { format!(": {}", failed.join(", ")) };
    format!("{passed} passed, {skipped} skipped, {} failed{list}", failed.len())
}

/// The programs of which no test passed: they would show nothing, even if all QEMUs give the same.
fn silent(of: QemuSeries, results: &Outcomes) -> Vec<&'static str> {
    let passes = |program: &str| {
        let is_its =
            |name: &str| name.strip_prefix(program).is_some_and(|test| test.starts_with(' ') && test != ENDS);
        results.iter().any(|(name, outcome)| *outcome == Outcome::Passed && is_its(name))
    };
    let all = qtests(of).into_iter().chain(UNIT_TESTS).chain(FUNCTIONAL_TESTS);
    all.filter(|program| !passes(program)).collect()
}

/// Where patched QEMU does not give what unpatched QEMU gives. It may have tests of its own, which pass or are skipped.
fn compare(stock: &Outcomes, patched: &Outcomes) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, outcome) in stock {
        match patched.get(name) {
            None => differences.push(format!("{name}: {outcome} without the patches, not run with them")),
            Some(found) if found != outcome => {
                differences.push(format!("{name}: {outcome} without the patches, {found} with them"));
            }
            Some(_) => (),
        }
    }
    for (name, outcome) in patched {
        if !stock.contains_key(name) && *outcome == Outcome::Failed {
            differences.push(format!("{name}: failed, and unpatched QEMU has no such test"));
        }
    }
    differences
}

/// Builds a kind of QEMU and runs all tests on it.
fn tests(of: QemuSeries, kind: Kind, log: &Path) -> Result<Outcomes> {
    let qtests = qtests(of).into_iter().map(|name| (name, format!("tests/qtest/{name}")));
    let unit_tests = UNIT_TESTS.into_iter().map(|name| (name, format!("tests/unit/{name}")));
    let (names, programs): (Vec<_>, Vec<_>) = qtests.chain(unit_tests).unzip();
    let logs = log.with_extension(format!("{of}-{}", kind.name()));
    remove_dir(&logs)?;
    fs::create_dir_all(&logs)?;
    own_tests::with(of, kind, &programs, log, |built| {
        let mut runs: Vec<Run> = Vec::new();
        for (name, program) in names.into_iter().zip(&programs) {
            let mut command = built.program(program);
            if name == "bios-tables-test" {
                command.args(SKIPPED.iter().flat_map(|test| ["-s", test]));
            }
            runs.push(Run { name, command, log: logs.join(name) });
        }
        for name in FUNCTIONAL_TESTS {
            let command = built.functional(name).with_context(|| format!("QEMU {of} has no test {name}"))?;
            runs.push(Run { name, command, log: logs.join(name) });
        }
        run_all(runs)
    })
}

/// One program with tests.
struct Run {
    name: &'static str,
    command: Command,
    log: PathBuf,
}

/// Runs the programs, some at a time.
fn run_all(runs: Vec<Run>) -> Result<Outcomes> {
    let queue = Mutex::new(runs.into_iter());
    let work = || {
        let next = || queue.lock().expect("no thread panics while it holds the lock").next();
        std::iter::from_fn(next).map(Run::results).collect::<Result<Vec<_>>>()
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let mut all = Outcomes::new();
        for thread in threads {
            all.extend(thread.join().expect("no test panics")?.into_iter().flatten());
        }
        Ok(all)
    })
}

impl Run {
    fn results(mut self) -> Result<Outcomes> {
        let ended = run_logged(&mut self.command, &self.log);
        let found = tap::outcomes(&String::from_utf8_lossy(&fs::read(&self.log)?));
        let ends = if ended.is_ok() && !found.is_empty() { Outcome::Passed } else { Outcome::Failed };
        let mut all = Outcomes::from([(format!("{}{ENDS}", self.name), ends)]);
        all.extend(found.into_iter().map(|(test, outcome)| (format!("{} {test}", self.name), outcome)));
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::{Failed, Passed, Skipped};

    fn outcomes(list: &[(&str, Outcome)]) -> Outcomes {
        list.iter().map(|(name, outcome)| ((*name).to_owned(), *outcome)).collect()
    }

    #[test]
    fn a_program_has_to_pass_a_test() {
        let mut found = Outcomes::new();
        for program in QTESTS.into_iter().chain(UNIT_TESTS).chain(FUNCTIONAL_TESTS) {
            found.insert(format!("{program}{ENDS}"), Passed);
            found.insert(format!("{program} /a"), if program == "qmp-test" { Skipped } else { Passed });
        }
        assert_eq!(silent(QemuSeries::V10_2, &found), ["qmp-test"]);
        assert_eq!(silent(QemuSeries::V10_0, &found), ["qmp-test", "amd-iommu-test"]);
    }

    #[test]
    fn patched_qemu_gives_what_unpatched_gives() {
        let stock = outcomes(&[("a", Passed), ("b", Skipped), ("c", Failed)]);
        assert_eq!(compare(&stock, &stock), [""; 0]);
        let new = outcomes(&[("a", Passed), ("b", Skipped), ("c", Failed), ("d", Passed), ("e", Skipped)]);
        assert_eq!(compare(&stock, &new), [""; 0]);
        let other = outcomes(&[("a", Failed), ("b", Passed), ("d", Failed)]);
        assert_eq!(compare(&stock, &other).len(), 4);
    }
}
