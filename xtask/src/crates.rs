//! Packs the crates for Rust programs as they would be published, and builds each one from its package, and with the
//! oldest versions of other crates that they accept.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use toml_edit::{Array, value};
use vfio_fast_assets::cache::remove_dir;
use vfio_fast_assets::progress::run_logged;
use vfio_fast_assets::{paths, tree};

use vfio_fast_assets::release::manifest;

/// What is published, each crate after those that it needs.
const PUBLISHED: [&str; 2] = ["vfio-fast-engine", "vfio-fast-dma"];
/// Their folders.
const FOLDERS: [&str; 2] = ["engine", "engine/rust"];

/// Packs a copy of the tree: cargo packs only what is committed.
pub fn check(log: &Path) -> Result<()> {
    let folder = paths::target().join("crates");
    let copy = folder.join("tree");
    // Cargo takes packages for unchangeable, and what it has built of them for good.
    remove_dir(&folder)?;
    tree::copy_to(&copy)?;
    forget_unpacked()?;
    let mut cargo = Command::new(paths::cargo());
    cargo.current_dir(&copy).env("CARGO_TERM_COLOR", "never").args(["package", "--locked", "--all-features"]);
    cargo.args(PUBLISHED.iter().flat_map(|name| ["--package", name]));
    cargo.arg("--target-dir").arg(folder.join("target"));
    run_logged(&mut cargo, log)?;
    check_oldest(&copy, &folder.join("oldest"), log)
}

/// Builds the crates of a copy of the tree with the oldest versions that their manifests accept.
fn check_oldest(copy: &Path, target: &Path, log: &Path) -> Result<()> {
    let workspace = copy.join("Cargo.toml");
    let mut published = manifest::read(&workspace)?;
    published["workspace"]["default-members"] = value(Array::from_iter(FOLDERS));
    manifest::write(&workspace, &published)?;
    // Dependencies of tests alone have no say.
    manifest::keep_what_ships(copy)?;
    fs::remove_file(copy.join("Cargo.lock")).context("the copy has no Cargo.lock")?;
    let cargo = |arguments: &[&str]| {
        let mut cargo = Command::new(paths::cargo());
        cargo.current_dir(copy).env("CARGO_TERM_COLOR", "never").args(arguments);
        // The choice of versions is not a stable option yet.
        cargo.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", target);
        cargo
    };
    run_logged(&mut cargo(&["-Zdirect-minimal-versions", "generate-lockfile"]), log)?;
    run_logged(&mut cargo(&["check", "--workspace", "--all-features", "--locked"]), log)
}

/// Removes what packages of this version were unpacked to before: cargo unpacks a version once, and would build what
/// needs it with the source of that time.
fn forget_unpacked() -> Result<()> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let sources = home.context("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    // Without a folder nothing was unpacked.
    for registry in fs::read_dir(sources).into_iter().flatten() {
        let registry = registry?.path();
        for name in PUBLISHED {
            remove_dir(&registry.join(format!("{name}-{}", env!("CARGO_PKG_VERSION"))))?;
        }
    }
    Ok(())
}
