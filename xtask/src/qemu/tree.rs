//! A git tree of QEMU: Debian's source as the first commit, one commit per patch after it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::series::Series;
use super::{display_name, log};
use crate::debian::{self, Source};
use crate::progress::{output, run_logged, step};

/// Names Debian's source inside the tree.
const BASE: &str = "base";
/// Begins the message of that commit; the version follows.
const BASE_SUBJECT: &str = "Debian qemu ";

/// Unpacks the source as `dir` and commits it, unless that is what `dir` already has.
pub fn prepare(source: &Source, dir: &Path) -> Result<()> {
    let message = format!("{BASE_SUBJECT}{}", source.version);
    if output(git(dir).args(["log", "-1", "--format=%s", BASE])).is_ok_and(|found| found.trim() == message) {
        return Ok(());
    }
    step(&format!("Unpack QEMU {}", source.version), &log("unpack"), |log| {
        fs::create_dir_all(dir.parent().context("a tree has a parent")?)?;
        debian::unpack_source(source, dir, log)?;
        run_logged(git(dir).args(["init", "--quiet", "--initial-branch=series"]), log)?;
        // Everything, ignored files included: a patch may touch what upstream ignores.
        run_logged(git(dir).args(["add", "--all", "--force"]), log)?;
        run_logged(git(dir).args(["commit", "--quiet", "--no-verify", "-m", &message]), log)?;
        // Last: the tag says that the tree is whole.
        run_logged(git(dir).args(["tag", BASE]), log)
    })
}

/// Applies the series on the base, each patch exactly as it is; returns the commits, base first.
pub fn apply_series(series: &Series, dir: &Path, log: &Path) -> Result<Vec<String>> {
    if !series.patches.is_empty() {
        let (made_on, here) = (series.base()?, base_version(dir)?);
        if made_on != here {
            eprintln!("    the series was made on {made_on}, this is {here}");
        }
    }
    // What an interrupted run left.
    let _ = git(dir).args(["am", "--abort"]).output();
    run_logged(git(dir).args(["checkout", "--quiet", "--force", "-B", "series", BASE]), log)?;
    run_logged(git(dir).args(["clean", "--quiet", "-ffdx"]), log)?;
    for patch in &series.patches {
        apply_patch(patch, dir, log)?;
    }
    commits(dir)
}

/// The commits of the tree, base first.
pub fn commits(dir: &Path) -> Result<Vec<String>> {
    let list = output(git(dir).args(["rev-list", "--reverse", &format!("{BASE}..HEAD")]))?;
    let base = output(git(dir).args(["rev-parse", BASE]))?;
    Ok(base.lines().chain(list.lines()).map(str::to_owned).collect())
}

/// Checks out one commit; files that do not differ keep their times.
pub fn checkout(dir: &Path, commit: &str, log: &Path) -> Result<()> {
    run_logged(git(dir).args(["checkout", "--quiet", "--force", "--detach", commit]), log)
}

/// A file of the tree as a commit has it; none if it is not there.
pub fn file_at(dir: &Path, commit: &str, path: &str) -> Option<String> {
    output(git(dir).args(["show", &format!("{commit}:{path}")])).ok()
}

/// The first line of a commit's message.
pub fn subject(dir: &Path, commit: &str) -> Result<String> {
    Ok(output(git(dir).args(["log", "-1", "--format=%s", commit]))?.trim().to_owned())
}

/// The Debian version of the base.
fn base_version(dir: &Path) -> Result<String> {
    let base = subject(dir, BASE)?;
    Ok(base.strip_prefix(BASE_SUBJECT).context("the base of the tree names no version")?.to_owned())
}

fn apply_patch(patch: &Path, dir: &Path, log: &Path) -> Result<()> {
    // No fuzz and no three-way merge: the context must be there. An offset is legal but told.
    let check = git(dir).args(["apply", "--check", "--verbose"]).arg(patch).env("LC_ALL", "C").output()?;
    let report = String::from_utf8_lossy(&check.stderr);
    fs::write(log.with_extension("last-patch"), report.as_bytes())?;
    if !check.status.success() {
        bail!("{} does not apply: {}", display_name(patch), rejects(&report));
    }
    for line in report.lines().filter(|line| line.contains("(offset ")) {
        eprintln!("    {}: {line}", display_name(patch));
    }
    let mut am = git(dir);
    am.args(["am", "--quiet", "--keep-cr", "--no-3way", "--committer-date-is-author-date"]).arg(patch);
    run_logged(&mut am, log).with_context(|| format!("{} is no mail that git am takes", display_name(patch)))
}

/// The files and lines that git apply complains about.
fn rejects(report: &str) -> String {
    let mut found: Vec<&str> = report
        .lines()
        .filter_map(|line| line.strip_prefix("error: "))
        .filter(|line| !line.ends_with(": patch does not apply"))
        .map(|line| line.strip_prefix("patch failed: ").unwrap_or(line))
        .collect();
    found.dedup();
    if found.is_empty() { report.trim().to_owned() } else { found.join(", ") }
}

/// `qemu apply`: the tree to work in.
pub fn apply(source: &Source, series: &Series, dir: &Path, force: bool) -> Result<()> {
    if !force && dir.join(".git").is_dir() && commits(dir).is_ok() {
        ensure_saved(series, dir)?;
    }
    prepare(source, dir)?;
    let log = log("apply");
    let commits =
        step(&format!("Apply {} patches", series.patches.len()), &log, |log| apply_series(series, dir, log))?;
    for commit in &commits {
        println!("{} {}", &commit[..12], subject(dir, commit)?);
    }
    println!("tree: {}", dir.display());
    Ok(())
}

/// `qemu refresh`: the commits of the tree become the series.
pub fn refresh(series: &Series, dir: &Path) -> Result<()> {
    ensure!(commits(dir).is_ok(), "No tree at {}: `cargo xtask qemu apply` makes one", dir.display());
    let changes = output(git(dir).args(["status", "--porcelain", "--untracked-files=no"]))?;
    ensure!(changes.is_empty(), "{} has changes that are in no commit:\n{changes}", dir.display());
    let version = base_version(dir)?;
    fs::create_dir_all(&series.dir)?;
    for patch in &series.patches {
        fs::remove_file(patch)?;
    }
    fs::write(series.dir.join("BASE"), format!("{version}\n"))?;
    print!("{}", format_patches(dir, &series.dir)?);
    Ok(())
}

/// Stops before the tree's own commits or changes would be lost.
fn ensure_saved(series: &Series, dir: &Path) -> Result<()> {
    let changes = output(git(dir).args(["status", "--porcelain", "--untracked-files=no"]))?;
    let now = scratch_patches(dir)?;
    let saved = series
        .patches
        .iter()
        .map(|patch| fs::read_to_string(patch).map_err(anyhow::Error::from))
        .collect::<Result<Vec<_>>>()?;
    if changes.is_empty() && (now == saved || now.is_empty()) {
        return Ok(());
    }
    bail!(
        "{} has work that the patch series does not have: `cargo xtask qemu refresh` saves its commits, \
         `apply --force` throws it away",
        dir.display()
    )
}

fn scratch_patches(dir: &Path) -> Result<Vec<String>> {
    let scratch = dir.join(".git/xtask-refresh");
    crate::cache::remove_dir(&scratch)?;
    let listed = format_patches(dir, &scratch)?;
    listed.lines().map(|path| Ok(fs::read_to_string(path)?)).collect()
}

/// Writes one file per commit after the base, the same bytes for the same commits; returns their paths.
fn format_patches(dir: &Path, into: &Path) -> Result<String> {
    let mut command = git(dir);
    command.args(["format-patch", "--zero-commit", "--no-signature", "--no-numbered", "--full-index"]);
    command.args(["--diff-algorithm=histogram", "--output-directory"]).arg(into);
    output(command.arg(format!("{BASE}..HEAD")))
}

/// git in the tree, deaf to the user's own settings: the same commits on every machine.
fn git(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(dir).env("GIT_CEILING_DIRECTORIES", parent(dir));
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "vfio-fast").env(format!("GIT_{who}_EMAIL"), "vfio-fast");
        command.env(format!("GIT_{who}_DATE"), "2026-01-01T00:00:00Z");
    }
    command.args(["-c", "core.autocrlf=false", "-c", "gc.auto=0", "-c", "advice.detachedHead=false"]);
    command
}

fn parent(dir: &Path) -> PathBuf {
    dir.parent().unwrap_or(dir).to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reject_names_file_and_line() {
        let report = "Checking patch hw/vfio/common.c...\n\
                      error: while searching for:\n\
                      error: patch failed: hw/vfio/common.c:573\n\
                      error: hw/vfio/common.c: patch does not apply\n";
        assert!(rejects(report).contains("hw/vfio/common.c:573"), "{}", rejects(report));
    }
}
