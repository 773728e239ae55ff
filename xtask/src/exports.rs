//! Checks that the libraries export exactly what they should.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use vfio_fast_assets::progress::output;

/// Compares the library installed below a prefix with the header installed there.
pub fn check(prefix: &Path) -> Result<()> {
    let header = fs::read_to_string(prefix.join("include/vfio_fast.h"))?;
    let library = prefix.join("lib/libvfio_fast.so");
    let symbols = output(Command::new("nm").args(["--dynamic", "--defined-only"]).arg(library))?;
    compare(&header, &symbols)
}

/// Checks that a library that is preloaded replaces no function of the program but ioctl().
pub fn check_preload(library: &Path) -> Result<()> {
    let symbols = output(Command::new("nm").args(["--dynamic", "--defined-only"]).arg(library))?;
    only_ioctl(&symbols)
}

fn only_ioctl(symbols: &str) -> Result<()> {
    let names: Vec<&str> = symbols.lines().filter_map(|line| line.split_whitespace().last()).collect();
    ensure!(
        names == ["ioctl"],
        "the library that is preloaded exports {}, and not ioctl alone",
        names.join(" ")
    );
    Ok(())
}

fn compare(header: &str, symbols: &str) -> Result<()> {
    let declared = declared(header);
    let exported: BTreeSet<&str> =
        symbols.lines().filter_map(|line| line.split_whitespace().last()).collect();
    let list = |names: Vec<&&str>| names.into_iter().copied().collect::<Vec<_>>().join(" ");
    let missing = list(declared.difference(&exported).collect());
    ensure!(missing.is_empty(), "declared in the header, not in the library: {missing}");
    let extra = list(exported.difference(&declared).collect());
    ensure!(extra.is_empty(), "exported by the library, not in the header: {extra}");
    ensure!(!declared.is_empty(), "the header declares nothing");
    Ok(())
}

/// The functions that a C header declares: names with the library's prefix directly before a parenthesis, outside
/// comments.
fn declared(header: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for part in header.split("/*").enumerate().map(|(n, part)| {
        // In every part but the first, code begins after the end of the comment.
        if n == 0 { part } else { part.split_once("*/").map_or("", |(_, code)| code) }
    }) {
        for (at, _) in part.match_indices('(') {
            let before = &part[..at];
            let start = before.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(0, |at| at + 1);
            if before[start..].starts_with("vfio_fast_") {
                names.insert(&before[start..]);
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "/* vfio_fast_nothing() */\n\
        typedef void (*vfio_fast_log_fn)(void *opaque);\n\
        int vfio_fast_open(const struct vfio_fast_config *config);\n\
        const char *vfio_fast_version(void);\n";

    #[test]
    fn the_same_set_passes_and_any_other_fails() {
        let both = "00 T vfio_fast_open\n01 T vfio_fast_version\n";
        compare(HEADER, both).unwrap();
        let error = compare(HEADER, "00 T vfio_fast_open\n").unwrap_err().to_string();
        assert_eq!(error, "declared in the header, not in the library: vfio_fast_version");
        let error = compare(HEADER, &format!("{both}02 B rust_state\n")).unwrap_err().to_string();
        assert_eq!(error, "exported by the library, not in the header: rust_state");
        assert!(compare("", "").is_err());
    }

    #[test]
    fn of_what_is_preloaded_only_ioctl_is_exported() {
        only_ioctl("0001 T ioctl\n").unwrap();
        let error = only_ioctl("0001 T ioctl\n0002 T madvise\n").unwrap_err().to_string();
        assert!(error.contains("exports ioctl madvise"), "{error}");
        assert!(only_ioctl("").is_err());
    }
}
