//! The statistics that QEMU's property lists are those of the header, in its order. They are declared once, in
//! `engine/src/stats.rs`; the compiler holds the C struct against that.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use vfio_fast_assets::{library, paths};

/// Compares the header with every series of patches.
pub fn check() -> Result<()> {
    let header = fs::read_to_string(library::header())?;
    let declared = declared(&header)?;
    for series in fs::read_dir(paths::root().join("qemu-patches"))? {
        let series = series?.path();
        if series.is_dir() {
            compare(&declared, &listed(&series)?).with_context(|| series.display().to_string())?;
        }
    }
    Ok(())
}

fn compare(declared: &[String], listed: &[String]) -> Result<()> {
    ensure!(!declared.is_empty(), "struct vfio_fast_stats has no fields");
    let missing: Vec<&str> =
        declared.iter().filter(|name| !listed.contains(name)).map(String::as_str).collect();
    ensure!(missing.is_empty(), "not in QEMU's list of statistics: {}", missing.join(" "));
    ensure!(
        declared == listed,
        "QEMU's list of statistics has another order, or names that are no statistics"
    );
    Ok(())
}

/// The fields of `struct vfio_fast_stats` after its size.
fn declared(header: &str) -> Result<Vec<String>> {
    let (_, rest) = header.split_once("struct vfio_fast_stats {").context("no struct vfio_fast_stats")?;
    let (body, _) = rest.split_once("\n};").context("struct vfio_fast_stats has no end")?;
    let fields = body.lines().filter_map(|line| line.trim().strip_suffix(';'));
    let names = fields.filter_map(|field| field.split_whitespace().last());
    Ok(names.filter(|name| !["size", "reserved"].contains(name)).map(str::to_owned).collect())
}

/// The names in `STAT(...)` that the patches of a series add.
fn listed(series: &Path) -> Result<Vec<String>> {
    let mut patches: Vec<_> =
        fs::read_dir(series)?.map(|item| item.map(|item| item.path())).collect::<Result<_, _>>()?;
    patches.sort();
    let mut names = Vec::new();
    for patch in patches.iter().filter(|path| path.extension().is_some_and(|end| end == "patch")) {
        let text = fs::read_to_string(patch)?;
        let added = text.lines().filter_map(|line| line.strip_prefix('+')?.trim().strip_prefix("STAT("));
        names.extend(added.filter_map(|rest| rest.strip_suffix("),")).map(str::to_owned));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statistic_that_is_missing_is_named() {
        let header = "struct vfio_fast_stats {\n  uint32_t size;\n  uint32_t reserved;\n  /**\n   * Calls; all.\n   */\n  uint64_t map_calls;\n  uint64_t map_bytes;\n};\n";
        let declared = declared(header).unwrap();
        assert_eq!(declared, ["map_calls", "map_bytes"]);
        compare(&declared, &declared).unwrap();
        let error = compare(&declared, &declared[..1]).unwrap_err().to_string();
        assert_eq!(error, "not in QEMU's list of statistics: map_bytes");
        let swapped = ["map_bytes".to_owned(), "map_calls".to_owned()];
        assert!(compare(&declared, &swapped).is_err());
    }
}
