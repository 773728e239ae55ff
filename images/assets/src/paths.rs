//! Paths in the repository.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).expect("this crate is in images/").to_path_buf()
}

/// Cargo's target directory. The tools write to no other place in the repository.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The cargo that started this program, so that everything is built by one toolchain.
pub fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// A new folder for one run of `kind`, and a link `latest` to it.
pub fn new_run(kind: &str) -> Result<PathBuf> {
    let root = target().join(kind);
    fs::create_dir_all(&root)?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let name = format!("{seconds}-{}", std::process::id());
    fs::create_dir(root.join(&name))?;
    let latest = root.join("latest");
    let _ = fs::remove_file(&latest);
    symlink(&name, &latest).with_context(|| format!("Cannot link {} to this run", latest.display()))?;
    Ok(root.join(name))
}
