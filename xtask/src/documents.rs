//! Runs the commands in the documents, in their order.
//!
//! A fenced block with the info string `sh` is run. `sh no-run` is only shown to readers: it needs a device, or runs
//! this check itself. The blocks of a document form one script, so variables keep their values from block to block.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::geteuid;
use vfio_fast_assets::outcome::CannotRun;
use vfio_fast_assets::progress::{run_logged, step};
use vfio_fast_assets::{once, paths};

/// The documents with commands for users.
const DOCUMENTS: &[&str] = &["README.md", "docs/QEMU.md", "qemu-patches/README.md"];

/// Lets a script install below /usr/local and write the linker's cache without changing this machine.
const PRIVATE: &str = "\
set -euo pipefail
scratch=$1
mkdir -p \"$scratch\"
mount -t tmpfs none \"$scratch\"
for place in usr/local etc; do
    mkdir -p \"$scratch/$place/upper\" \"$scratch/$place/work\"
    mount -t overlay overlay \"/$place\" \\
        -o \"lowerdir=/$place,upperdir=$scratch/$place/upper,workdir=$scratch/$place/work\"
done
exec bash \"$2\"
";

/// Files that decide whether the commands work. Other checks test the library itself.
const INPUTS: &[&str] = &[
    "Cargo.lock",
    "README.md",
    "docs/QEMU.md",
    "ffi/cli",
    "ffi/doctor",
    "ffi/examples",
    "ffi/tests/c/example.c",
    "ffi/vfio_fast.pc.in",
    "images/assets",
    "images/e2e",
    "images/emulator",
    "include",
    "packaging",
    "qemu-patches",
    "engine/rust/examples",
    "xtask",
];

/// Runs the commands unless they have passed with the same documents and tools.
pub fn check_once(log: &Path) -> Result<()> {
    let host = fs::read_to_string("/etc/debian_version").unwrap_or_default();
    once::unless_passed("documents", INPUTS, &[&host], || check(log))
}

/// Runs the commands of all documents, one script per document.
fn check(log: &Path) -> Result<()> {
    if !geteuid().is_root() {
        return Err(CannotRun(
            "the commands in the documents install to /usr/local, which requires root".into(),
        )
        .into());
    }
    let folder = paths::target().join("test/documents");
    fs::create_dir_all(&folder)?;
    let nothing = folder.join("nothing.sh");
    fs::write(&nothing, "true\n")?;
    if run_logged(&mut private(&folder, &nothing), log).is_err() {
        return Err(CannotRun(
            "this machine does not allow an overlay mount in a private mount namespace".into(),
        )
        .into());
    }
    for name in DOCUMENTS {
        let text = fs::read_to_string(paths::root().join(name))?;
        let script = folder.join(format!("{}.sh", name.replace('/', "-")));
        fs::write(&script, script_of(&text).with_context(|| format!("{name} contains no command"))?)?;
        let part = log.with_file_name(format!("{}.log", name.replace('/', "-")));
        step(&format!("Run the commands of {name}"), &part, |log| {
            run_logged(&mut private(&folder, &script), log)
        })?;
    }
    ensure!(changed()?.is_empty(), "the commands changed files of the repository: {}", changed()?);
    Ok(())
}

/// A command that runs a script in a private mount namespace, so that what it installs is discarded.
fn private(folder: &Path, script: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", PRIVATE, "private"]).arg(folder.join("scratch")).arg(script);
    command.current_dir(paths::root());
    command
}

/// Changes that git reports in the patch series, which one of the commands rewrites.
fn changed() -> Result<String> {
    let mut git = Command::new("git");
    git.current_dir(paths::root()).args(["status", "--short", "qemu-patches"]);
    Ok(vfio_fast_assets::progress::output(&mut git)?.trim().to_owned())
}

/// The script made of a document's blocks. It prints each line before running it.
fn script_of(text: &str) -> Option<String> {
    let blocks = blocks(text);
    let header = "set -euxo pipefail\n".to_owned();
    (!blocks.is_empty()).then(|| blocks.iter().fold(header, |script, block| script + block))
}

/// The blocks to run.
fn blocks(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(words)) => open = Some((words.trim() == "sh", String::new())),
            (Some(_), Some(_)) => found.extend(open.take().filter(|(runs, _)| *runs).map(|(_, block)| block)),
            (Some((_, block)), None) => *block += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_to_be_run_is_run() {
        let text = "# A\n```sh\none\ntwo\n```\ntext\n```sh no-run\nthree\n```\n```text\nfour\n```\n```sh\nfive\n```\n";
        assert_eq!(blocks(text), ["one\ntwo\n", "five\n"]);
        assert_eq!(script_of(text).unwrap(), "set -euxo pipefail\none\ntwo\nfive\n");
        assert_eq!(script_of("```c\nint x;\n```\n"), None);
    }

    #[test]
    fn every_document_shows_commands() {
        for name in DOCUMENTS {
            let text = fs::read_to_string(paths::root().join(name)).unwrap();
            assert!(script_of(&text).is_some(), "{name}");
        }
    }
}
