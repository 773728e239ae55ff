//! Copies of the repository's files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::paths;
use crate::progress::output;

/// Copies the files that are in git or could be added to it.
pub fn copy_to(folder: &Path) -> Result<()> {
    let mut git = Command::new("git");
    git.current_dir(paths::root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    for name in output(&mut git)?.split_terminator('\0') {
        let from = paths::root().join(name);
        // A file that was removed without a commit is still listed.
        if from.symlink_metadata().is_ok() {
            copy(&from, &folder.join(name))?;
        }
    }
    Ok(())
}

/// Copies a file, or a link as it is, with the folders that it needs.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let describe = || format!("Cannot copy {}", from.display());
    fs::create_dir_all(to.parent().context("a file has a folder")?)?;
    if from.symlink_metadata().with_context(describe)?.is_symlink() {
        return symlink(fs::read_link(from)?, to).with_context(describe);
    }
    fs::copy(from, to).map(drop).with_context(describe)
}
