//! The tests of VFIO and iommufd that the newest kernel's source has.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cache::{Cache, Input, remove_dir};
use crate::kernel::{fetch, make, unpack};
use crate::progress::{run_logged, step};
use crate::{packages, paths};

/// The folders of tests, and the programs of them that need no hardware but a device for VFIO.
const TESTS: [(&str, &[&str]); 2] = [
    ("iommu", &["iommufd", "iommufd_fail_nth"]),
    (
        "vfio",
        &[
            "vfio_dma_mapping_test",
            "vfio_dma_mapping_mmio_test",
            "vfio_iommufd_setup_test",
            "vfio_pci_device_test",
        ],
    ),
];

/// A function that 7.2.13 calls and does not have.
const LACKING: &str = "calloc_assert";
const INSTEAD: &str = "-Dcalloc_assert=calloc";

/// The programs, from the cache or built now.
pub fn built(cache: &Cache) -> Result<Vec<PathBuf>> {
    packages::ensure(cache)?;
    let source = fetch(cache)?;
    // Stands for the host's compiler.
    let host = fs::read_to_string("/etc/debian_version").unwrap_or_default();
    let mut inputs = vec![Input::File(&source.path), Input::Text(&host), Input::Text(INSTEAD)];
    inputs.extend(TESTS.iter().flat_map(|(_, programs)| *programs).map(|program| Input::Text(program)));
    let entry = cache.entry("kernel-tests", &inputs)?;
    let dir = entry.get_or_build(|dir| {
        step(&format!("Build the tests of {}", source.package), &entry.log(), |log| {
            let tree = paths::target().join("kernel-tests");
            unpack(&source, &tree, log)?;
            run_logged(make(cache, &tree).arg("headers"), log)?;
            for (folder, programs) in TESTS {
                let folder = tree.join("tools/testing/selftests").join(folder);
                build(cache, &folder, programs, dir, log)?;
            }
            remove_dir(&tree)
        })
    })?;
    Ok(TESTS.iter().flat_map(|(_, programs)| *programs).map(|program| dir.join(program)).collect())
}

/// Builds the programs of a folder, and copies them.
fn build(cache: &Cache, folder: &Path, programs: &[&str], to: &Path, log: &Path) -> Result<()> {
    let output = folder.join("built");
    fs::create_dir(&output)?;
    let mut make = make(cache, folder);
    make.arg(format!("OUTPUT={}", output.display()));
    if !mentions(&folder.join("lib/include"), LACKING)? {
        make.arg(format!("EXTRA_CFLAGS={INSTEAD}"));
    }
    make.args(programs.iter().map(|program| output.join(program)));
    run_logged(&mut make, log)?;
    for program in programs {
        fs::copy(output.join(program), to.join(program))?;
    }
    Ok(())
}

/// Whether a file in this folder, or below it, has that word.
fn mentions(folder: &Path, word: &str) -> Result<bool> {
    if !folder.exists() {
        return Ok(false);
    }
    for item in fs::read_dir(folder)? {
        let path = item?.path();
        if if path.is_dir() { mentions(&path, word)? } else { fs::read_to_string(&path)?.contains(word) } {
            return Ok(true);
        }
    }
    Ok(false)
}
