//! Clean Debian systems in a directory, made by mmdebstrap.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::Debian;
use crate::cache::Input;
use crate::progress::{self, run_logged};

/// Where the system lies in its cache entry.
const ROOT: &str = "root";

impl Debian {
    /// A system with the essential packages, apt, `packages`, and what these depend on. Only root can make it.
    ///
    /// Nothing may write to it: others use it too. It is made again when a package in it has a newer version.
    pub fn system(&self, name: &str, packages: &[&str]) -> Result<PathBuf> {
        let install = ["install", "--print-uris", "--yes", "--no-install-recommends", "apt", "?essential"];
        let uris = self.query("apt-get", &[&install[..], packages].concat())?;
        let entry =
            self.cache.entry(name, &[Input::Text("system 1"), Input::Text(&files(&uris).join("\n"))])?;
        let dir = entry.get_or_build(|dir| {
            progress::step(&format!("Install {name}"), &entry.log(), |log| {
                let sources = dir.join("debian.sources");
                fs::write(
                    &sources,
                    fs::read_to_string(self.sources())?.replace("Types: deb deb-src", "Types: deb"),
                )?;
                // What it mounts must not outlive it: the directory is removed after an error.
                let mut command = Command::new("unshare");
                command.args(["--mount", "mmdebstrap", "--mode=root", "--variant=apt"]);
                command.arg(format!("--include={}", packages.join(",")));
                command.arg(self.suite).arg(dir.join(ROOT)).arg(&sources);
                run_logged(&mut command, log)
            })
        })?;
        Ok(dir.join(ROOT))
    }
}

/// The files that apt-get would download: from each line 'URI' file size hash, all but the URI.
pub fn files(uris: &str) -> Vec<&str> {
    let quoted = uris.lines().filter(|line| line.starts_with('\''));
    quoted.filter_map(|line| line.split_once("' ").map(|(_, file)| file)).collect()
}
