//! Judges the record of one run, and compares runs of different modes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use vfio_fast_protocol::host::Kernel;
use vfio_fast_protocol::job::{Firmware, Mode};
use vfio_fast_protocol::record::{DEVICE_FAULTS, Facts, Start, Traffic};
use vfio_fast_protocol::spec::{Program, ScenarioSpec};
use vfio_fast_protocol::witness;

use super::iommu_trace;
use super::records::{Check, RunRecord, log_text};
use super::splat;
use vfio_fast_assets::outcome::CannotRun;

/// The verdict on one run.
#[derive(Debug)]
pub struct Verdict {
    /// Name of the scenario and its host.
    pub name: String,
    pub mode: Mode,
    /// Whether the times of this run are compared.
    pub timed: bool,
    /// All checks, passed and failed.
    pub checks: Vec<Check>,
    /// Counters, if the run got that far.
    pub facts: Option<Facts>,
    /// Measured starts of L2.
    pub starts: Vec<Start>,
    /// Measured traffic of L2 through its own IOMMU.
    pub traffic: Vec<Traffic>,
    /// Number of retries, by cause.
    pub retries: BTreeMap<String, u32>,
    /// Folder with the logs.
    pub folder: PathBuf,
    /// Run time of L1 in seconds.
    pub seconds: f64,
    /// Whether L1 as a whole stopped responding.
    pub stalled: bool,
}

impl Verdict {
    /// Whether all checks passed.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }

    /// The failed checks, each as `name: detail`.
    pub fn problems(&self) -> Vec<String> {
        let failed = self.checks.iter().filter(|check| !check.ok);
        failed.map(|check| format!("{}: {}", check.name, check.detail)).collect()
    }

    /// Prints the failed checks from index `from` on.
    pub fn print_failures(&self, from: usize) {
        for check in self.checks[from..].iter().filter(|check| !check.ok) {
            println!("    FAILED {} {}: {}", self.name, check.name, check.detail);
            println!("    logs: {}", self.folder.display());
        }
    }

    fn push(&mut self, name: &str, problems: &[String], seen: &str) {
        let ok = problems.is_empty();
        let detail = if ok { seen.to_owned() } else { problems.join("; ") };
        self.checks.push(Check { name: name.into(), ok, detail });
    }
}

/// Judges one run.
pub fn one(plan: &ScenarioSpec, mode: Mode, told: RunRecord, folder: &Path) -> Result<Verdict> {
    if told.heard.is_none() {
        return Err(not_booted(plan, &told, folder));
    }
    let mut verdict = Verdict {
        name: plan.name(),
        mode,
        timed: plan.timed,
        checks: told.checks,
        facts: told.facts,
        starts: told.starts,
        traffic: told.traffic,
        retries: told.retries,
        folder: folder.into(),
        seconds: told.took.as_secs_f64(),
        stalled: told.stalled,
    };
    let mut problems = told.trouble;
    if !told.ended {
        problems.push("L1 ended without reporting that it had finished".into());
    }
    verdict.push("ran-to-its-end", &problems, "L1 reported its end and powered off");
    if plan.traces_iommu {
        let (problems, seen) = iommu_trace::check(folder, &plan.addresses()[0]);
        verdict.push("iommu-agrees", &problems, &seen);
    }
    if plan.firmware == Firmware::Ovmf {
        verdict.push(
            "booted-by-ovmf",
            &other_firmware(&log_text(folder, "l2-dmesg")),
            "L2's kernel log confirms it",
        );
    }
    let missing: Vec<String> = plan
        .expected_checks(mode)
        .into_iter()
        .filter(|name| !verdict.checks.iter().any(|check| check.name == *name))
        .map(|name| format!("{name} was never made"))
        .collect();
    verdict.push("all-checks-made", &missing, "every check of the scenario was made");

    let mut logs = vec!["l1-dmesg", "l1-console"];
    if plan.l2_boots {
        logs.extend(["l2-dmesg", "l2-console"]);
    }
    let page = u64::from(plan.host.page_kib()) << 10;
    let windows = match plan.program {
        Program::Conformance => splat::conformance_faults(page),
        _ => splat::announced_faults(&log_text(folder, DEVICE_FAULTS), page),
    };
    let read = |name: &str| {
        let mut log = log_text(folder, name);
        if plan.kills_for_memory {
            log = splat::without_memory_kills(&log);
        }
        if plan.device_faults {
            log = splat::without_wanted_faults(&log, &windows);
        }
        log
    };
    let mut splats: Vec<String> = logs.iter().flat_map(|name| splat::scan(name, &read(name))).collect();
    splats.extend(splat::scan_emulator(&read("l0-qemu")));
    splats.truncate(10);
    verdict.push("kernel-logs", &splats, &format!("{} are clean", logs.join(", ")));
    Ok(verdict)
}

/// The error of a run in which L1 did not reach user space.
#[derive(Debug)]
pub struct NotBooted;

impl fmt::Display for NotBooted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("L1 did not reach user space")
    }
}

impl std::error::Error for NotBooted {}

/// The error with the cause as far as the console shows it, the ends of the logs, and how to repeat the run.
fn not_booted(plan: &ScenarioSpec, told: &RunRecord, folder: &Path) -> anyhow::Error {
    let console = log_text(folder, "l1-console");
    let emulator = log_text(folder, "l0-qemu");
    let panic = console.lines().find(|line| line.contains("Kernel panic"));
    let why = panic.map_or_else(|| told.trouble.join("; "), str::to_owned);
    let last = |log: &str| -> String {
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(5)..].iter().map(|line| format!("\n    | {}", line.trim())).collect()
    };
    let text = format!(
        "{}: L1 did not reach user space: {why}{}{}\n  Logs: {}\n  The emulator was started as {} says. If the machine is \
         busy or short of memory, run `cargo xtask e2e --only {}` again when it is not.",
        plan.name(),
        last(&emulator),
        last(&console),
        folder.display(),
        folder.join("l0-command.txt").display(),
        plan.name()
    );
    let error = anyhow::Error::new(NotBooted);
    match plan.host.kernel {
        // Debian's kernel is known to boot on other machines, so this machine cannot run it.
        Kernel::Debian | Kernel::Debian16k => error.context(CannotRun(text)),
        // This kernel is built here, so a mistake in its options is a failure of the repository.
        Kernel::Newest => error.context(text),
    }
}

/// Reports a problem unless the log shows that OVMF booted the kernel.
fn other_firmware(log: &str) -> Vec<String> {
    let told = log.lines().find_map(|line| line.split_once("efi: EFI v"));
    match told {
        Some((_, rest)) if rest.contains("EDK II") => Vec::new(),
        Some((_, rest)) => vec![format!("L2 was booted by EFI v{rest}")],
        None => vec!["L2's kernel found no EFI".to_owned()],
    }
}

/// Compares the runs of one scenario. Patched QEMU with vfio-fast off, or built without it, must make exactly the
/// ioctls of unpatched QEMU. In every mode the device must be able to access the same memory. If unpatched QEMU did
/// not run, patched QEMU with vfio-fast off is the reference.
pub fn compare_modes(verdicts: &mut [Verdict]) -> Result<()> {
    for n in 0..verdicts.len() {
        let (name, mode) = (&verdicts[n].name, verdicts[n].mode);
        let with = |mode| verdicts.iter().find(|v| v.name == *name && v.mode == mode);
        let reference = with(Mode::Reference).or_else(|| with(Mode::Stock));
        let Some(reference) = reference.filter(|reference| mode != reference.mode) else { continue };
        let (theirs, ours) = (reference.folder.clone(), verdicts[n].folder.clone());
        let unpatched = reference.mode == Mode::Reference;
        let count = verdicts[n].checks.len();
        if unpatched && matches!(mode, Mode::NotBuilt | Mode::Stock) {
            let (reference, stock) = (sequence(&theirs)?, sequence(&ours)?);
            let problems = first_difference("ioctl", &reference, &stock);
            let seen = format!("{} ioctls, the same as unpatched QEMU's", stock.len());
            verdicts[n].push("same-ioctls-as-unpatched", &problems, &seen);
        }
        let (reference, held) = (held(&theirs)?, held(&ours)?);
        if !reference.is_empty() {
            let problems = first_difference("mapping", &reference, &held);
            let seen = format!("{} ranges, the same as without the library", held.len());
            verdicts[n].push("same-mappings-as-without", &problems, &seen);
        }
        verdicts[n].print_failures(count);
    }
    Ok(())
}

/// Every VFIO ioctl of a run, also written to a file for use with diff.
fn sequence(folder: &Path) -> Result<Vec<String>> {
    let calls = witness::parse(&log_text(folder, "witness"))?;
    let sequence = witness::sequence(&calls);
    fs::write(folder.join("sequence.txt"), sequence.join("\n"))?;
    Ok(sequence)
}

/// The mappings at every point at which a run recorded them, each prefixed with the name of the point.
fn held(folder: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(name) = name.strip_suffix(".log").filter(|name| name.starts_with("held-")) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    let lines = |name: &String| -> Vec<String> {
        log_text(folder, name).lines().map(|line| format!("{name}: {line}")).collect()
    };
    Ok(names.iter().flat_map(lines).collect())
}

fn first_difference(what: &str, reference: &[String], ours: &[String]) -> Vec<String> {
    if reference.is_empty() {
        return vec![format!("without the library there was no {what}")];
    }
    let pairs = reference.iter().zip(ours).enumerate();
    if let Some((n, (a, b))) = pairs.into_iter().find(|(_, (a, b))| a != b) {
        return vec![format!("{what} {n}: without the library `{a}`, here `{b}`")];
    }
    if reference.len() != ours.len() {
        return vec![format!("without the library: {} times {what}, here {}", reference.len(), ours.len())];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_machine_that_does_not_boot_says_why_and_how_to_go_on() {
        let folder = vfio_fast_assets::paths::target()
            .join("test-scratch")
            .join(format!("judge-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let console =
            "[ 1.0] Linux version 6.12\n[ 2.0] Kernel panic - not syncing: no init\n\n[ 2.1] Rebooting\n";
        fs::write(folder.join("l1-console.log"), console).unwrap();
        fs::write(folder.join("l0-qemu.log"), "qemu: cannot allocate memory\n").unwrap();
        let error = one(&crate::scenario::main(), Mode::Fast, RunRecord::default(), &folder).unwrap_err();
        assert!(error.downcast_ref::<NotBooted>().is_some(), "booted once more where it is emulated");
        assert!(error.downcast_ref::<CannotRun>().is_some(), "this machine cannot run it: 69");
        let text = format!("{error:#}");
        for part in [
            "no init",
            "| [ 2.1] Rebooting",
            "| qemu: cannot allocate",
            "l0-command.txt",
            "--only nvme-intel-debian",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_kernel_tells_what_booted_it() {
        let ovmf = "<6> Linux version 6.12\n<6> efi: EFI v2.7 by Debian distribution of EDK II\n";
        assert!(other_firmware(ovmf).is_empty());
        assert_eq!(other_firmware("<6> efi: EFI v2.7 by Das U-Boot\n").len(), 1);
        assert_eq!(other_firmware("<6> Linux version 6.12\n").len(), 1);
    }

    #[test]
    fn any_difference_is_found() {
        assert!(first_difference("x", &lines("a b c"), &lines("a b c")).is_empty());
        assert_eq!(first_difference("x", &lines("a b c"), &lines("a x c")).len(), 1);
        assert_eq!(first_difference("x", &lines("a b c"), &lines("a b")).len(), 1);
        assert_eq!(first_difference("x", &lines("a b"), &lines("a b c")).len(), 1);
        assert_eq!(first_difference("x", &[], &[]).len(), 1, "nothing compared is nothing shown");
    }
}
