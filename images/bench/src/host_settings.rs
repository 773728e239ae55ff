//! Changes the host's settings for huge pages during one run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vfio_fast_assets::interrupt::{Cleanup, on_interrupt};

const SHMEM: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
/// Pages beyond the reserved pool, which the kernel allocates from free memory on demand and frees after use.
const OVERCOMMIT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages";

/// Pages of 1 GiB, of which the kernel allocates none on demand.
const GIGANTIC: &str = "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages";
/// The pages of 1 GiB to reserve. The kernel reserves fewer if memory is fragmented.
const GIGANTIC_PAGES: &str = "3";

/// Restores the settings when dropped, or when a signal ends the process.
#[derive(Debug)]
pub struct Settings(Vec<(PathBuf, String, Cleanup)>);

/// Allows shmem to use huge pages on request, and hugetlb pages to be allocated without a reserved pool; reserves a few
/// pages of 1 GiB if the CPU has them.
pub fn allow_huge_pages() -> Result<Settings> {
    let mut settings = Settings(Vec::new());
    settings.set(SHMEM, "advise")?;
    settings.set(OVERCOMMIT, "1048576")?;
    if Path::new(GIGANTIC).exists() {
        settings.set(GIGANTIC, GIGANTIC_PAGES)?;
    }
    Ok(settings)
}

impl Settings {
    fn set(&mut self, path: &str, value: &str) -> Result<()> {
        let text = fs::read_to_string(path).with_context(|| format!("Cannot read {path}"))?;
        let old = in_force(&text).to_owned();
        let (file, before) = (PathBuf::from(path), old.clone());
        let cleanup = on_interrupt(move || put_back(&file, &before));
        fs::write(path, value).with_context(|| format!("Cannot write {value} to {path}: needs root"))?;
        eprintln!("    {path}: {old} -> {value}; if this run is killed: echo {old} > {path}");
        self.0.push((path.into(), old, cleanup));
        Ok(())
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        self.0.iter().rev().for_each(|(path, old, _)| put_back(path, old));
    }
}

fn put_back(path: &Path, old: &str) {
    if let Err(error) = fs::write(path, old) {
        eprintln!("    Cannot put {} back to {old}: {error}", path.display());
    }
}

/// The selected (bracketed) word in a list of choices, or the number in the file.
fn in_force(text: &str) -> &str {
    let inside = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(text.trim(), |(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_choices_and_numbers() {
        assert_eq!(in_force("always within_size advise [never] deny force\n"), "never");
        assert_eq!(in_force("0\n"), "0");
    }

    #[test]
    fn puts_back_what_was_there() {
        let path =
            vfio_fast_assets::paths::target().join(format!("test-scratch/knob-{}", std::process::id()));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "always [madvise] never\n").unwrap();
        let mut settings = Settings(Vec::new());
        settings.set(path.to_str().unwrap(), "always").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "always");
        drop(settings);
        assert_eq!(fs::read_to_string(&path).unwrap(), "madvise");
        fs::remove_file(path).unwrap();
    }
}
