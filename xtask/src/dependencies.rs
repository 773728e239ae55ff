//! Checks the crates that this repository depends on: where they come from, on which terms, and which of them are in
//! the process of a program that uses the library.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use vfio_fast_assets::paths;
use vfio_fast_assets::progress::output;

/// What is linked into `libvfio_fast.so`. A crate more is code in QEMU's process: it has to be worth that.
const IN_PROCESS: &[&str] = &["libc", "vfio-bindings", "vfio-fast", "vfio-fast-engine"];

/// Licences that anything here may have.
const ACCEPTED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "GPL-2.0-or-later",
    "ISC",
    "MIT",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Those of them under which code can be linked with QEMU, parts of which are GPL-2.0 only.
const WITH_GPL_2: &[&str] =
    &["0BSD", "BSD-2-Clause", "BSD-3-Clause", "GPL-2.0-or-later", "ISC", "MIT", "Zlib"];

/// One crate of the lock file.
#[derive(Clone, Debug)]
struct Package {
    name: String,
    license: String,
    /// Where it comes from; `None`: this repository.
    source: Option<String>,
    /// The ids of what it is linked with.
    linked: Vec<String>,
}

/// Checks every crate that is compiled for this system.
pub fn check() -> Result<()> {
    let mut cargo = Command::new(paths::cargo());
    cargo.current_dir(paths::root()).args(["metadata", "--format-version=1", "--locked"]);
    cargo.arg("--filter-platform=x86_64-unknown-linux-gnu");
    let packages = parse(&output(&mut cargo)?).context("cargo metadata")?;
    let complaints = complaints(&packages)?;
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("{} complaints\n{}", complaints.len(), complaints.join("\n"))
}

/// The crates, by their ids.
fn parse(text: &str) -> Result<BTreeMap<String, Package>> {
    let metadata: Value = serde_json::from_str(text)?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let is_linked =
        |dependency: &Value| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
    let mut packages = BTreeMap::new();
    for package in list(&metadata["packages"]) {
        let id = text(&package["id"]).context("a package has no id")?;
        let name = text(&package["name"]).context("a package has no name")?;
        let license = text(&package["license"]).unwrap_or_default();
        let source = text(&package["source"]);
        packages.insert(id, Package { name, license, source, linked: Vec::new() });
    }
    for node in list(&metadata["resolve"]["nodes"]) {
        let id = text(&node["id"]).context("a node has no id")?;
        let package = packages.get_mut(&id).context("a node is of no package")?;
        let linked = list(&node["deps"]).into_iter().filter(is_linked);
        package.linked = linked.filter_map(|dependency| text(&dependency["pkg"])).collect();
    }
    Ok(packages)
}

fn complaints(packages: &BTreeMap<String, Package>) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for Package { name, license, source, .. } in packages.values() {
        if source.as_ref().is_some_and(|source| !source.starts_with("registry+")) {
            complaints
                .push(format!("{name} is not from the registry: {}", source.as_deref().unwrap_or_default()));
        }
        if !allows(license, ACCEPTED) {
            complaints.push(format!("{name} has the licence `{license}`"));
        }
    }
    let linked = linked_with(packages, "vfio-fast")?;
    let names: BTreeSet<&str> = linked.iter().map(|package| package.name.as_str()).collect();
    if names != IN_PROCESS.iter().copied().collect() {
        let names: Vec<&str> = names.into_iter().collect();
        complaints.push(format!(
            "libvfio_fast.so has {}, and should have {}",
            names.join(" "),
            IN_PROCESS.join(" ")
        ));
    }
    for Package { name, license, .. } in linked {
        if !allows(license, WITH_GPL_2) {
            complaints.push(format!("{name} has the licence `{license}`, which GPL-2.0 does not allow"));
        }
    }
    Ok(complaints)
}

/// What is linked into a crate, and itself.
fn linked_with<'a>(packages: &'a BTreeMap<String, Package>, name: &str) -> Result<Vec<&'a Package>> {
    let root = packages.iter().find(|(_, package)| package.name == name);
    let (root, _) = root.with_context(|| format!("there is no crate {name}"))?;
    let (mut found, mut open) = (BTreeSet::new(), vec![root]);
    while let Some(id) = open.pop() {
        if found.insert(id) {
            open.extend(packages.get(id).iter().flat_map(|package| &package.linked));
        }
    }
    Ok(found.into_iter().filter_map(|id| packages.get(id)).collect())
}

/// Whether a licence expression can be fulfilled with these licences: each term of an `AND`, one of each `OR`. Older
/// crates write `/` for `OR`.
fn allows(expression: &str, licences: &[&str]) -> bool {
    let one_of = |term: &str| {
        let term = term.trim().trim_start_matches('(').trim_end_matches(')');
        term.split(" OR ").flat_map(|part| part.split('/')).any(|name| licences.contains(&name.trim()))
    };
    // `AND` binds more tightly, but no crate here relies on that: each writes parentheses.
    expression.split(" AND ").all(one_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_read() {
        assert!(allows("MIT OR Apache-2.0", &["MIT"]) && allows("Unlicense/MIT", &["MIT"]));
        assert!(!allows("Apache-2.0", &["MIT"]) && !allows("", &["MIT"]));
        assert!(!allows("(MIT OR Apache-2.0) AND Unicode-3.0", &["MIT"]));
        assert!(allows("(MIT OR Apache-2.0) AND Unicode-3.0", &["MIT", "Unicode-3.0"]));
        assert!(!allows("Apache-2.0 WITH LLVM-exception", &["Apache-2.0"]));
    }

    #[test]
    fn each_rule_is_checked() {
        let package = |name: &str, license: &str, source: Option<&str>, linked: &[&str]| {
            let (name, license) = (name.to_owned(), license.to_owned());
            let linked = linked.iter().map(ToString::to_string).collect();
            Package { name, license, source: source.map(str::to_owned), linked }
        };
        let registry = Some("registry+somewhere");
        let right = [
            package("vfio-fast", "Apache-2.0 OR GPL-2.0-or-later", None, &["vfio-fast-engine", "libc"]),
            package("vfio-fast-engine", "Apache-2.0 OR GPL-2.0-or-later", None, &["libc", "vfio-bindings"]),
            package("vfio-bindings", "Apache-2.0 OR BSD-3-Clause", registry, &[]),
            package("libc", "MIT OR Apache-2.0", registry, &[]),
            package("lab", "Apache-2.0", registry, &["libc"]),
        ];
        let judged = |n: usize, changed: Package| {
            let mut packages = right.to_vec();
            packages[n] = changed;
            let packages = packages.into_iter().map(|package| (package.name.clone(), package));
            complaints(&packages.collect()).unwrap().join("\n")
        };
        assert_eq!(judged(4, right[4].clone()), "");
        let git = Some("git+https://somewhere");
        assert!(judged(4, package("lab", "MIT", git, &[])).contains("lab is not from the registry"));
        assert!(
            judged(4, package("lab", "GPL-3.0-only", registry, &[]))
                .contains("lab has the licence `GPL-3.0-only`")
        );
        let apache = package("libc", "Apache-2.0", registry, &[]);
        assert!(judged(3, apache).contains("which GPL-2.0 does not allow"));
        let more = package("libc", "MIT", registry, &["lab"]);
        assert!(
            judged(3, more).contains("libvfio_fast.so has lab libc vfio-bindings vfio-fast vfio-fast-engine")
        );
    }
}
