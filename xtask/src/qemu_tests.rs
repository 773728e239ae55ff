//! Runs QEMU's own tests on unpatched QEMU, on patched QEMU without the library, and with it, and compares the results.

use std::collections::BTreeMap;
use std::fmt;
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

/// The tests of devices, with a QEMU whose processor is stopped or runs a few instructions: IOMMUs, PCI, virtio (qos-test),
/// each device's and machine's properties, ACPI tables (DMAR, IVRS and VIOT among them), QMP, HMP, migration.
const QTESTS: [&str; 13] = [
    "amd-iommu-test",
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

/// How long a program may take.
const SECONDS: &str = "1800";
/// How many programs run at a time.
const THREADS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Skipped,
    Failed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Passed => "passed",
            Outcome::Skipped => "skipped",
            Outcome::Failed => "failed",
        })
    }
}

/// What each test of a QEMU gave.
type Results = BTreeMap<String, Outcome>;

pub fn check(log: &Path) -> Result<()> {
    let mut differences = Vec::new();
    for of in QemuSeries::ALL {
        let results = |kind| tests(of, kind, log);
        let stock = results(Kind::Stock)?;
        say(&format!("    QEMU {of}, unpatched: {}", counts(&stock)));
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

fn counts(results: &Results) -> String {
    let count = |wanted| results.values().filter(|outcome| **outcome == wanted).count();
    let (passed, skipped) = (count(Outcome::Passed), count(Outcome::Skipped));
    let failed: Vec<&str> =
        results.iter().filter(|(_, o)| **o == Outcome::Failed).map(|(name, _)| name.as_str()).collect();
    let list = if failed.is_empty() { String::new() } else { format!(": {}", failed.join(", ")) };
    format!("{passed} passed, {skipped} skipped, {} failed{list}", failed.len())
}

/// Where patched QEMU does not give what unpatched QEMU gives. It may have tests of its own, which pass or are skipped.
fn compare(stock: &Results, patched: &Results) -> Vec<String> {
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
fn tests(of: QemuSeries, kind: Kind, log: &Path) -> Result<Results> {
    let qtests = QTESTS.map(|name| format!("tests/qtest/{name}"));
    let unit_tests = UNIT_TESTS.map(|name| format!("tests/unit/{name}"));
    let programs = [&qtests[..], &unit_tests].concat();
    let logs = log.with_extension(format!("{of}-{}", kind.name()));
    remove_dir(&logs)?;
    fs::create_dir_all(&logs)?;
    own_tests::with(of, kind, &programs, log, |built| {
        let mut runs: Vec<Run> = Vec::new();
        for (name, program) in QTESTS.iter().zip(&qtests).chain(UNIT_TESTS.iter().zip(&unit_tests)) {
            let mut command = built.program(program);
            if *name == "bios-tables-test" {
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
fn run_all(runs: Vec<Run>) -> Result<Results> {
    let queue = Mutex::new(runs.into_iter());
    let work = || {
        let next = || queue.lock().expect("no thread panics while it holds the lock").next();
        std::iter::from_fn(next).map(Run::results).collect::<Result<Vec<_>>>()
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let mut all = Results::new();
        for thread in threads {
            all.extend(thread.join().expect("no test panics")?.into_iter().flatten());
        }
        Ok(all)
    })
}

impl Run {
    fn results(self) -> Result<Results> {
        let mut limited = Command::new("timeout");
        limited
            .args(["--kill-after=10", SECONDS])
            .arg(self.command.get_program())
            .args(self.command.get_args());
        limited.envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(dir) = self.command.get_current_dir() {
            limited.current_dir(dir);
        }
        let ended = run_logged(&mut limited, &self.log);
        let mut results = parse(self.name, &String::from_utf8_lossy(&fs::read(&self.log)?));
        // A program that ends early, or says nothing, counts as a test that failed.
        let ended = ended.is_ok() && !results.is_empty();
        results.insert(format!("{} ends", self.name), if ended { Outcome::Passed } else { Outcome::Failed });
        Ok(results)
    }
}

/// The results in a program's output, which is in the TAP format.
fn parse(program: &str, output: &str) -> Results {
    let mut results = Results::new();
    for line in output.lines() {
        let (passed, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => continue,
        };
        let (description, directive) = rest.split_once(" # ").unwrap_or((rest, ""));
        let name =
            description.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches([' ', '-']);
        // A failure says why.
        let name = name.split_once(" - ").map_or(name, |(name, _)| name);
        let outcome = match (passed, directive.to_ascii_uppercase().starts_with("SKIP")) {
            (true, true) => Outcome::Skipped,
            (true, false) => Outcome::Passed,
            (false, _) => Outcome::Failed,
        };
        results.insert(format!("{program} {name}"), outcome);
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::{Failed, Passed, Skipped};

    fn results(list: &[(&str, Outcome)]) -> Results {
        list.iter().map(|(name, outcome)| ((*name).to_owned(), *outcome)).collect()
    }

    #[test]
    fn each_line_of_a_program_is_a_result() {
        let output = "TAP version 14\n1..4\nok 1 /x86_64/pc/a\n# a comment\nok 2 /b # SKIP needs KVM\n\
            not ok 3 /c - ERROR:d.c\nok 4 test_e.F.test_g\nok\n";
        let found = parse("t", output);
        let wanted =
            [("t /x86_64/pc/a", Passed), ("t /b", Skipped), ("t /c", Failed), ("t test_e.F.test_g", Passed)];
        assert_eq!(found, results(&wanted));
    }

    #[test]
    fn patched_qemu_gives_what_unpatched_gives() {
        let stock = results(&[("a", Passed), ("b", Skipped), ("c", Failed)]);
        assert_eq!(compare(&stock, &stock), [""; 0]);
        let new = results(&[("a", Passed), ("b", Skipped), ("c", Failed), ("d", Passed), ("e", Skipped)]);
        assert_eq!(compare(&stock, &new), [""; 0]);
        let other = results(&[("a", Failed), ("b", Passed), ("d", Failed)]);
        assert_eq!(compare(&stock, &other).len(), 4);
    }
}
