//! A git tree of QEMU: the first commit is Debian's source, each further commit one patch.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::series::{self, Series};
use super::{display_name, log};
use crate::debian::{self, Source};
use crate::progress::{output, run_logged, step};

/// Tag of Debian's source.
const BASE: &str = "base";
/// Tag of the commit that corresponds to the series in the repository.
const SAVED: &str = "saved";
/// Prefix of the base commit's message; the version follows.
const BASE_SUBJECT: &str = "Debian qemu ";

/// Variables that git sets for its hooks and helpers. They refer to a different repository.
const OTHER_REPOSITORY: [&str; 15] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_CONFIG_COUNT",
    "GIT_CONFIG_PARAMETERS",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
];

/// Unpacks the source to `dir` and commits it, unless `dir` already contains it.
pub fn prepare(source: &Source, dir: &Path) -> Result<()> {
    let message = format!("{BASE_SUBJECT}{}", source.version);
    if output(git(dir).args(["log", "-1", "--format=%s", BASE])).is_ok_and(|found| found.trim() == message) {
        return Ok(());
    }
    step(&format!("Unpack QEMU {}", source.version), &log("unpack"), |log| {
        fs::create_dir_all(dir.parent().context("a tree has a parent")?)?;
        debian::unpack_source(source, dir, log)?;
        run_logged(git(dir).args(["init", "--quiet", "--initial-branch=series"]), log)?;
        // Add ignored files too: a patch can touch what upstream ignores.
        run_logged(git(dir).args(["add", "--all", "--force"]), log)?;
        run_logged(git(dir).args(["commit", "--quiet", "--no-verify", "-m", &message]), log)?;
        // Tag last: the tag marks the tree as complete.
        run_logged(git(dir).args(["tag", BASE]), log)
    })
}

/// Applies the series to the base, each patch exactly as it is. Returns the commits, base first.
pub fn apply_series(series: &Series, dir: &Path, log: &Path) -> Result<Vec<String>> {
    if !series.patches.is_empty() {
        let (made_on, here) = (series.base()?, base_version(dir)?);
        if made_on != here {
            crate::progress::say(&format!("    the series was made on {made_on}, this is {here}"));
        }
    }
    // Clean up after an interrupted run.
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

/// Checks out one commit. Files that do not differ keep their times.
pub fn checkout(dir: &Path, commit: &str, log: &Path) -> Result<()> {
    run_logged(git(dir).args(["checkout", "--quiet", "--force", "--detach", commit]), log)
}

/// The contents of a file at a commit, if the file exists there.
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
    // No fuzz and no three-way merge: the context must match. An offset is allowed but printed.
    let check = git(dir).args(["apply", "--check", "--verbose"]).arg(patch).env("LC_ALL", "C").output()?;
    let report = String::from_utf8_lossy(&check.stderr);
    fs::write(log.with_extension("last-patch"), report.as_bytes())?;
    if !check.status.success() {
        bail!("{} does not apply: {}", display_name(patch), rejects(&report));
    }
    for line in report.lines().filter(|line| line.contains("(offset ")) {
        crate::progress::say(&format!("    {}: {line}", display_name(patch)));
    }
    let mut am = git(dir);
    am.args(["am", "--quiet", "--keep-cr", "--no-3way", "--committer-date-is-author-date"]).arg(patch);
    run_logged(&mut am, log)
        .with_context(|| format!("{} is not a mail that git am accepts", display_name(patch)))
}

/// The files and lines of git apply's errors.
fn rejects(report: &str) -> String {
    let mut found: Vec<&str> = report
        .lines()
        .filter_map(|line| line.strip_prefix("error: "))
        .filter(|line| !line.ends_with(": patch does not apply") && *line != "while searching for:")
        .map(|line| line.strip_prefix("patch failed: ").unwrap_or(line))
        .collect();
    found.dedup();
    if found.is_empty() { report.trim().to_owned() } else { found.join(", ") }
}

/// Implements `qemu apply`: creates the working tree.
pub fn apply(source: &Source, series: &Series, dir: &Path, force: bool) -> Result<()> {
    if !force && dir.join(".git").is_dir() && commits(dir).is_ok() {
        ensure_saved(dir)?;
    }
    prepare(source, dir)?;
    let log = log("apply");
    let commits = step(&format!("Apply {} patches", series.patches.len()), &log, |log| {
        let commits = apply_series(series, dir, log);
        // Also after a reject: all commits so far come from the series.
        mark_saved(dir)?;
        commits
    })?;
    for commit in &commits {
        println!("{} {}", &commit[..12], subject(dir, commit)?);
    }
    println!("tree: {}", dir.display());
    Ok(())
}

/// Implements `qemu refresh`: replaces the series by the commits of the tree. Returns the files.
pub fn refresh(series: &Series, dir: &Path) -> Result<String> {
    ensure!(commits(dir).is_ok(), "No tree at {}: `cargo xtask qemu apply` makes one", dir.display());
    let changes = output(git(dir).args(["status", "--porcelain", "--untracked-files=no"]))?;
    ensure!(changes.is_empty(), "{} has changes that are in no commit:\n{changes}", dir.display());
    let version = base_version(dir)?;
    fs::create_dir_all(&series.dir)?;
    for patch in &series.patches {
        fs::remove_file(patch)?;
    }
    fs::write(series.dir.join(series::BASE), format!("{version}\n"))?;
    let files = format_patches(dir, &series.dir)?;
    mark_saved(dir)?;
    Ok(files)
}

/// Fails if the tree has commits or changes that are not in the series.
fn ensure_saved(dir: &Path) -> Result<()> {
    let changes = output(git(dir).args(["status", "--porcelain", "--untracked-files=no"]))?;
    let head = output(git(dir).args(["rev-parse", "HEAD"]))?;
    let saved = output(git(dir).args(["rev-parse", SAVED])).unwrap_or_default();
    ensure!(
        changes.is_empty() && head == saved,
        "{} has work that the patch series does not have: `cargo xtask qemu refresh` saves its commits, \
         `apply --force` discards it",
        dir.display()
    );
    Ok(())
}

fn mark_saved(dir: &Path) -> Result<()> {
    output(git(dir).args(["tag", "--force", SAVED])).map(drop)
}

/// Writes one file per commit after the base and returns the paths. The same commits always give the same bytes.
fn format_patches(dir: &Path, into: &Path) -> Result<String> {
    let mut command = git(dir);
    command.args(["format-patch", "--zero-commit", "--no-signature", "--no-numbered", "--abbrev=8"]);
    command.arg("--output-directory").arg(into);
    output(command.arg(format!("{BASE}..HEAD")))
}

/// Runs git in the tree without the user's settings, so that commits are the same on every machine. Also removes the
/// variables of a git that runs this program, because they would redirect the commands to its repository.
fn git(dir: &Path) -> Command {
    let mut command = Command::new("git");
    for name in OTHER_REPOSITORY {
        command.env_remove(name);
    }
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
    use crate::cache::remove_dir;
    use crate::paths;

    /// A small tree with two commits after its base, and its series.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(test: &str) -> Scratch {
            let dir =
                paths::target().join("test-scratch").join(format!("tree-{test}-{}", std::process::id()));
            remove_dir(&dir).unwrap();
            let scratch = Scratch(dir);
            let tree = scratch.tree();
            fs::create_dir_all(&tree).unwrap();
            scratch.write("a", 1..=40);
            output(git(&tree).args(["init", "--quiet", "--initial-branch=series"])).unwrap();
            scratch.commit(&format!("{BASE_SUBJECT}1:10.0.13+ds-0"));
            output(git(&tree).args(["tag", BASE])).unwrap();
            scratch.write("a", 1..=41);
            scratch.commit("vfio: One more\n\nBecause.\n\nSigned-off-by: A <a@b.invalid>");
            scratch.write("b", 1..=3);
            scratch.commit("vfio: Another file");
            refresh(&scratch.series(), &tree).unwrap();
            scratch
        }

        fn tree(&self) -> PathBuf {
            self.0.join("tree")
        }

        fn series(&self) -> Series {
            Series::open(&self.0.join("patches")).unwrap()
        }

        fn write(&self, name: &str, numbers: std::ops::RangeInclusive<u32>) {
            let text: String = numbers.map(|n| format!("line {n}\n")).collect();
            fs::write(self.tree().join(name), text).unwrap();
        }

        fn commit(&self, message: &str) {
            output(git(&self.tree()).args(["add", "--all"])).unwrap();
            output(git(&self.tree()).args(["commit", "--quiet", "-m", message])).unwrap();
        }

        fn apply(&self) -> Result<Vec<String>> {
            apply_series(&self.series(), &self.tree(), &self.0.join("log"))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            remove_dir(&self.0).unwrap();
        }
    }

    #[test]
    fn no_other_repository_is_heard_of() {
        let names = output(Command::new("git").args(["rev-parse", "--local-env-vars"])).unwrap();
        assert!(names.contains("GIT_DIR"), "{names}");
        let command = git(Path::new("."));
        for name in names.lines() {
            assert!(command.get_envs().any(|(key, value)| key == name && value.is_none()), "{name} is heard");
        }
    }

    #[test]
    fn apply_and_refresh_are_inverse() {
        let scratch = Scratch::new("inverse");
        let read = || -> Vec<String> {
            scratch.series().patches.iter().map(|patch| fs::read_to_string(patch).unwrap()).collect()
        };
        let before = read();
        assert_eq!(before.len(), 2);
        let first = scratch.apply().unwrap();
        assert_eq!(first.len(), 3);
        assert_eq!(scratch.apply().unwrap(), first, "the same commits every time");
        refresh(&scratch.series(), &scratch.tree()).unwrap();
        assert_eq!(read(), before, "the same patches every time");
        assert_eq!(subject(&scratch.tree(), &first[1]).unwrap(), "vfio: One more");
        assert_eq!(file_at(&scratch.tree(), &first[1], "b"), None);
        assert!(file_at(&scratch.tree(), &first[2], "b").is_some());
    }

    #[test]
    fn a_reject_names_the_patch_and_the_file() {
        let scratch = Scratch::new("reject");
        let patch = &scratch.series().patches[0];
        let text = fs::read_to_string(patch).unwrap();
        assert!(text.contains("\n line 39\n"), "{text}");
        // One line of context differs, which fuzz would accept.
        fs::write(patch, text.replace("\n line 39\n", "\n line x\n")).unwrap();
        let error = scratch.apply().unwrap_err().to_string();
        assert_eq!(error, "0001-vfio-One-more.patch does not apply: a:38");
    }

    #[test]
    fn unsaved_work_is_not_thrown_away() {
        let scratch = Scratch::new("unsaved");
        ensure_saved(&scratch.tree()).unwrap();
        scratch.write("b", 1..=4);
        assert!(ensure_saved(&scratch.tree()).is_err(), "a change");
        scratch.commit("vfio: More");
        assert!(ensure_saved(&scratch.tree()).is_err(), "a commit");
        refresh(&scratch.series(), &scratch.tree()).unwrap();
        ensure_saved(&scratch.tree()).unwrap();
        assert_eq!(scratch.series().patches.len(), 3);
    }
}
