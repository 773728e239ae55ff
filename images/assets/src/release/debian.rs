//! Checks that the files of Debian, and the spec of RPM, describe this archive.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::VERSION;

/// Fails if the changelog or the spec is of another version, or a vendored crate has no licence in `debian/copyright`.
pub fn check(tree: &Path) -> Result<()> {
    let debian = tree.join("debian");
    let read = |name: &str| fs::read_to_string(debian.join(name)).with_context(|| format!("debian/{name}"));
    check_changelog(&read("changelog")?)?;
    let spec = tree.join("packaging/rpm/vfio-fast.spec");
    check_spec(&fs::read_to_string(&spec).with_context(|| format!("Cannot read {}", spec.display()))?)?;
    let mut crates = Vec::new();
    for entry in fs::read_dir(tree.join("vendor"))? {
        crates.push(entry?.file_name().to_string_lossy().into_owned());
    }
    check_copyright(&read("copyright")?, &crates)
}

fn check_changelog(text: &str) -> Result<()> {
    let first = text.lines().next().unwrap_or_default();
    let rest = first.strip_prefix("vfio-fast (").and_then(|rest| rest.strip_prefix(VERSION));
    let right = rest.is_some_and(|rest| rest.starts_with('-'));
    ensure!(
        right,
        "packaging/debian/changelog begins with `{first}`, and Cargo.toml has the version {VERSION}"
    );
    Ok(())
}

fn check_spec(text: &str) -> Result<()> {
    let version = text.lines().find_map(|line| line.strip_prefix("Version:")).map(str::trim);
    ensure!(
        version == Some(VERSION),
        "packaging/rpm/vfio-fast.spec has the version {version:?}, and Cargo.toml {VERSION}"
    );
    Ok(())
}

/// Each crate, as name-version, has a pattern `vendor/name-*` of its own, and each pattern a crate.
fn check_copyright(text: &str, crates: &[String]) -> Result<()> {
    let patterns = text.split_whitespace().filter_map(|word| word.strip_prefix("vendor/")?.strip_suffix('*'));
    let patterns: Vec<&str> = patterns.collect();
    let matches = |pattern: &str, name: &str| {
        name.strip_prefix(pattern).is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()))
    };
    for name in crates {
        let found = patterns.iter().any(|pattern| matches(pattern, name));
        ensure!(found, "packaging/debian/copyright does not have the licence of {name}");
    }
    for pattern in patterns {
        let found = crates.iter().any(|name| matches(pattern, name));
        ensure!(found, "packaging/debian/copyright has vendor/{pattern}*, which the archive does not have");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    #[test]
    fn the_changelog_has_the_version_of_the_crates() {
        let committed = fs::read_to_string(paths::root().join("packaging/debian/changelog")).unwrap();
        check_changelog(&committed).unwrap();
        let error =
            check_changelog("vfio-fast (0.0.9-1) unstable; urgency=medium\n").unwrap_err().to_string();
        assert!(error.contains("begins with `vfio-fast (0.0.9-1)"), "{error}");
        assert!(check_changelog(&format!("vfio-fast ({VERSION}1-1) unstable\n")).is_err());
    }

    #[test]
    fn the_spec_has_the_version_of_the_crates() {
        let committed = fs::read_to_string(paths::root().join("packaging/rpm/vfio-fast.spec")).unwrap();
        check_spec(&committed).unwrap();
        assert!(check_spec(&committed.replace(VERSION, "0.0.9")).is_err());
        assert!(check_spec("Name: vfio-fast\n").is_err());
    }

    #[test]
    fn every_crate_has_a_licence() {
        let text = "Files: vendor/serde-* vendor/libc-*\nLicense: Expat\n";
        let crates = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        check_copyright(text, &crates(&["serde-1.0.2", "libc-0.2.1"])).unwrap();
        let error = |names: &[&str]| check_copyright(text, &crates(names)).unwrap_err().to_string();
        assert!(error(&["serde-1.0.2", "libc-0.2.1", "serde_json-1.0.0"]).ends_with("of serde_json-1.0.0"));
        assert!(error(&["serde-json-1.0.2", "libc-0.2.1"]).ends_with("of serde-json-1.0.2"));
        assert!(error(&["libc-0.2.1"]).contains("has vendor/serde-*"));
    }
}
