//! Judges what a run told, and what two runs of different modes say about each other.

use std::path::{Path, PathBuf};

use anyhow::Result;
use vfio_fast_agent::job::{Mode, Scenario};
use vfio_fast_agent::record::Facts;
use vfio_fast_agent::witness;

use super::records::{Check, Told, log_text};
use super::scenario::{self, Plan};
use super::splat;
use crate::outcome::CannotRun;

/// The judgement of one run.
#[derive(Debug)]
pub struct Verdict {
    /// Which scenario.
    pub scenario: Scenario,
    /// Its name.
    pub name: String,
    /// Which listener.
    pub mode: Mode,
    /// Everything that was looked at.
    pub checks: Vec<Check>,
    /// What was counted, if the run got that far.
    pub facts: Option<Facts>,
    /// Where its logs are.
    pub folder: PathBuf,
    /// How long L1 ran, in seconds.
    pub seconds: f64,
}

impl Verdict {
    /// Whether everything held.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }

    /// Prints what did not hold.
    pub fn print_failures(&self) {
        for check in self.checks.iter().filter(|check| !check.ok) {
            println!("    FAILED {}: {}", check.name, check.detail);
        }
        if !self.passed() {
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
pub fn one(plan: &Plan, mode: Mode, told: Told, folder: &Path) -> Result<Verdict> {
    if !told.reached_user_space {
        let why = told.trouble.join("; ");
        let text = format!("L1 never reached user space ({why}), logs: {}", folder.display());
        return Err(CannotRun(text).into());
    }
    let mut verdict = Verdict {
        scenario: plan.scenario,
        name: plan.name(),
        mode,
        checks: told.checks,
        facts: told.facts,
        folder: folder.into(),
        seconds: told.took.as_secs_f64(),
    };
    let mut problems = told.trouble;
    if !told.ended {
        problems.push("L1 ended without saying that it was through".into());
    }
    verdict.push("ran-to-its-end", &problems, "L1 said so and powered off");
    let missing: Vec<String> = plan
        .expected_checks(mode)
        .into_iter()
        .filter(|name| !verdict.checks.iter().any(|check| check.name == *name))
        .map(|name| format!("{name} was never looked at"))
        .collect();
    verdict.push("all-checks-made", &missing, "every check of the scenario was made");

    let mut logs = vec!["l1-dmesg", "l1-console"];
    if plan.l2_boots {
        logs.extend(["l2-dmesg", "l2-console"]);
    }
    let mut splats: Vec<String> =
        logs.iter().flat_map(|name| splat::scan(name, &log_text(folder, name))).collect();
    splats.extend(splat::scan_emulator(&log_text(folder, "l0-qemu")));
    splats.truncate(10);
    verdict.push("kernel-logs", &splats, &format!("{} are clean", logs.join(", ")));
    Ok(verdict)
}

/// What has to hold between runs of one scenario: patched QEMU with vfio-fast off makes exactly the
/// ioctls of unpatched QEMU.
pub fn compare_modes(run: &Path, verdicts: &mut [Verdict]) -> Result<()> {
    let sequence = |scenario: Scenario, mode: Mode, verdicts: &[Verdict]| -> Result<Option<Vec<String>>> {
        let found = verdicts.iter().find(|v| v.scenario == scenario && v.mode == mode);
        let Some(found) = found else { return Ok(None) };
        let calls = witness::parse(&log_text(&found.folder, "witness"))?;
        Ok(Some(witness::sequence(&calls)))
    };
    for n in 0..verdicts.len() {
        if verdicts[n].mode != Mode::Stock {
            continue;
        }
        let scenario = verdicts[n].scenario;
        let Some(reference) = sequence(scenario, Mode::Reference, verdicts)? else { continue };
        let stock = sequence(scenario, Mode::Stock, verdicts)?.unwrap_or_default();
        let folder = run.join(format!("{}-{}", verdicts[n].name, scenario::mode_name(Mode::Stock)));
        std::fs::write(folder.join("sequence.txt"), stock.join("\n"))?;
        std::fs::write(folder.join("sequence-reference.txt"), reference.join("\n"))?;
        let problems = first_difference(&reference, &stock);
        let seen = format!("{} ioctls, the same as unpatched QEMU's", stock.len());
        verdicts[n].push("same-ioctls-as-unpatched", &problems, &seen);
        verdicts[n].print_failures();
    }
    Ok(())
}

fn first_difference(reference: &[String], stock: &[String]) -> Vec<String> {
    if reference.is_empty() {
        return vec!["unpatched QEMU made no VFIO ioctl".into()];
    }
    let pairs = reference.iter().zip(stock).enumerate();
    if let Some((n, (a, b))) = pairs.into_iter().find(|(_, (a, b))| a != b) {
        return vec![format!("ioctl {n}: unpatched `{a}`, patched `{b}`")];
    }
    if reference.len() != stock.len() {
        return vec![format!("unpatched made {}, patched {}", reference.len(), stock.len())];
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
    fn any_difference_is_found() {
        assert!(first_difference(&lines("a b c"), &lines("a b c")).is_empty());
        assert_eq!(first_difference(&lines("a b c"), &lines("a x c")).len(), 1);
        assert_eq!(first_difference(&lines("a b c"), &lines("a b")).len(), 1);
        assert_eq!(first_difference(&lines("a b"), &lines("a b c")).len(), 1);
        assert_eq!(first_difference(&[], &[]).len(), 1, "nothing compared is nothing shown");
    }
}
