//! The sources of the crates that the archive needs.
//!
//! `cargo vendor` copies all that the lock file names, also crates for other systems with their prebuilt libraries.
//! Cargo wants a manifest for each of these, but reads no more of them: of those only the manifest is kept.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::manifest;
use crate::cache::remove_dir;
use crate::paths;
use crate::progress::{output, run_logged};

/// The only system that the library is for.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Makes cargo take the vendored sources in place of its registry.
const CONFIG: &str = "\
[source.crates-io]
replace-with = \"vendored-sources\"

[source.vendored-sources]
directory = \"vendor\"

[net]
offline = true
";
/// Tables of a manifest that name files other than those of the library.
const FILES: &[&str] = &["bin", "bench", "test", "example"];

/// Copies the crates that the workspace in `tree` depends on to `tree/vendor`, and writes a lock file without others.
pub fn vendor(tree: &Path, log: &Path) -> Result<()> {
    // Without --locked, cargo removes from the lock file what is not needed any more, and keeps all versions.
    let mut vendor = cargo(tree, &["vendor", "--versioned-dirs"]);
    run_logged(vendor.arg(tree.join("vendor")), log)?;
    fs::create_dir_all(tree.join(".cargo"))?;
    fs::write(tree.join(".cargo/config.toml"), CONFIG)?;
    let needed = packages(tree, &["--filter-platform", TARGET])?;
    for entry in fs::read_dir(tree.join("vendor"))? {
        let entry = entry?;
        if !needed.contains(entry.file_name().to_string_lossy().as_ref()) {
            keep_manifest(&entry.path())
                .with_context(|| format!("Cannot reduce {}", entry.path().display()))?;
        }
    }
    // Cargo still accepts the whole.
    packages(tree, &[]).map(drop)
}

/// The packages in the dependency graph, as name-version.
fn packages(tree: &Path, options: &[&str]) -> Result<BTreeSet<String>> {
    let arguments = [&["metadata", "--format-version=1", "--locked", "--offline"], options].concat();
    let metadata: Value = serde_json::from_str(&output(&mut cargo(tree, &arguments))?)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let name =
        |package: &Value| Some(format!("{}-{}", package["name"].as_str()?, package["version"].as_str()?));
    packages.iter().map(|package| name(package).context("a package has a name and a version")).collect()
}

/// Replaces a vendored crate by its manifest with an empty library.
fn keep_manifest(folder: &Path) -> Result<()> {
    let mut kept = manifest::read(&folder.join("Cargo.toml"))?;
    for key in FILES {
        kept.remove(key);
    }
    kept["package"]["build"] = toml_edit::value(false);
    kept["lib"]["path"] = toml_edit::value("src/lib.rs");
    let checksums = folder.join(".cargo-checksum.json");
    let all: Value = serde_json::from_str(&fs::read_to_string(&checksums)?)?;
    remove_dir(folder)?;
    fs::create_dir_all(folder.join("src"))?;
    fs::write(folder.join("src/lib.rs"), "")?;
    manifest::write(&folder.join("Cargo.toml"), &kept)?;
    fs::write(&checksums, json!({ "files": {}, "package": all["package"] }).to_string())?;
    Ok(())
}

fn cargo(tree: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(paths::cargo());
    command.current_dir(tree).args(args).env("CARGO_TERM_COLOR", "never");
    command
}
