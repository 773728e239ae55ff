//! Reduces the workspace to what ships: the crates that `cargo build` builds, and what they depend on.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use toml_edit::{DocumentMut, Item, Table};

/// Tests, benches, and their dependencies. The crate that checks interleavings is one: it is no dependency without its cfg.
const NOT_SHIPPED: &[&str] = &["dev-dependencies", "test", "bench", "target"];

/// Removes members that do not ship from the manifests below `tree`, and dependencies that only they have.
pub fn keep_what_ships(tree: &Path) -> Result<()> {
    let mut workspace = read(&tree.join("Cargo.toml"))?;
    let table = workspace["workspace"].as_table_mut().context("Cargo.toml has no workspace")?;
    let shipped = table.remove("default-members").context("the workspace has no default-members")?;
    let folders: Vec<String> =
        shipped.as_array().into_iter().flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect();
    table.insert("members", shipped);
    let mut used = BTreeSet::new();
    for folder in folders {
        let path = tree.join(folder).join("Cargo.toml");
        let mut member = read(&path)?;
        used.extend(reduce(&mut member));
        write(&path, &member)?;
    }
    let dependencies = table["dependencies"].as_table_mut().context("the workspace has no dependencies")?;
    dependencies.retain(|name, _| used.contains(name));
    write(&tree.join("Cargo.toml"), &workspace)
}

/// Removes what does not ship from the manifest of a crate. Returns the names of its dependencies.
fn reduce(member: &mut DocumentMut) -> Vec<String> {
    for key in NOT_SHIPPED {
        member.remove(key);
    }
    let tables = ["dependencies", "build-dependencies"].into_iter().filter_map(|key| member.get(key));
    tables.filter_map(Item::as_table).flat_map(Table::iter).map(|(name, _)| name.to_owned()).collect()
}

/// Reads a manifest.
pub fn read(path: &Path) -> Result<DocumentMut> {
    let text = fs::read_to_string(path).with_context(|| format!("Cannot read {}", path.display()))?;
    text.parse().with_context(|| path.display().to_string())
}

/// Writes a manifest.
pub fn write(path: &Path, manifest: &DocumentMut) -> Result<()> {
    fs::write(path, manifest.to_string()).with_context(|| format!("Cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_keeps_what_it_is_built_from() {
        let text = "[package]\nname = \"x\"\n\n[dependencies]\na.workspace = true\n\n\
                    [target.'cfg(y)'.dependencies]\nb.workspace = true\n\n[dev-dependencies]\nc.workspace = true\n\n\
                    [build-dependencies]\nd = \"1\"\n\n[[test]]\nname = \"y\"\n\n[[bench]]\nname = \"z\"\n";
        let mut manifest: DocumentMut = text.parse().unwrap();
        assert_eq!(reduce(&mut manifest), ["a", "d"]);
        let rest = manifest.to_string();
        assert_eq!(
            rest,
            "[package]\nname = \"x\"\n\n[dependencies]\na.workspace = true\n\n[build-dependencies]\nd = \"1\"\n"
        );
    }
}
