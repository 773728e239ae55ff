//! The patch series in the repository: an ordered list of `git format-patch` files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::display_name;

/// The file with the Debian version that the patches were exported from.
pub const BASE: &str = "BASE";

/// The patches for one QEMU series.
#[derive(Clone, Debug)]
pub struct Series {
    pub dir: PathBuf,
    /// The patch files, in the order in which they apply.
    pub patches: Vec<PathBuf>,
}

impl Series {
    /// Reads the directory. A missing directory is an empty series.
    pub fn open(dir: &Path) -> Result<Series> {
        let mut patches = Vec::new();
        if dir.is_dir() {
            for item in fs::read_dir(dir).with_context(|| format!("Cannot read {}", dir.display()))? {
                let path = item?.path();
                if path.extension().is_some_and(|extension| extension == "patch") {
                    patches.push(path);
                }
            }
        }
        patches.sort();
        for (n, patch) in patches.iter().enumerate() {
            let name = display_name(patch);
            let expected = format!("{:04}-", n + 1);
            ensure!(name.starts_with(&expected), "{name}: the series has no {expected}*.patch before it");
        }
        Ok(Series { dir: dir.to_path_buf(), patches })
    }

    /// The Debian version that the series was exported from.
    pub fn base(&self) -> Result<String> {
        let path = self.dir.join(BASE);
        let text = fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    #[test]
    fn a_gap_in_the_numbers_is_told() {
        let dir = paths::target().join("test-scratch").join(format!("series-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        for name in ["BASE", "0001-a.patch", "0002-b.patch", "notes.txt"] {
            fs::write(dir.join(name), "1:10.0.13+ds-0\n").unwrap();
        }
        let series = Series::open(&dir).unwrap();
        assert_eq!(series.patches, [dir.join("0001-a.patch"), dir.join("0002-b.patch")]);
        assert_eq!(series.base().unwrap(), "1:10.0.13+ds-0");
        fs::rename(dir.join("0002-b.patch"), dir.join("0003-b.patch")).unwrap();
        let error = Series::open(&dir).unwrap_err().to_string();
        assert_eq!(error, "0003-b.patch: the series has no 0002-*.patch before it");
        fs::remove_dir_all(&dir).unwrap();
        assert!(Series::open(&dir).unwrap().patches.is_empty());
    }
}
