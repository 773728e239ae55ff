//! Kernel modules: their dependencies, and the order in which to load them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Writes the modules `wanted` and their dependencies to `to`, decompressed, with a file `order` that lists them in
/// loading order. `root` contains one folder per kernel release.
pub fn unpack(root: &Path, wanted: &[&str], to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let release = only_entry(root, "")?;
    let mut unpacking = Unpacking {
        files: BTreeMap::new(),
        builtin: fs::read_to_string(release.join("modules.builtin"))?,
        to,
        order: Vec::new(),
    };
    index(&release, &mut unpacking.files)?;
    for name in wanted {
        unpacking.add(name, 0)?;
    }
    fs::write(to.join("order"), unpacking.order.join("\n"))?;
    Ok(())
}

/// The only entry of a folder with a name that begins with `prefix`.
pub fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("Cannot read {}", folder.display()))?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    ensure!(found.len() == 1, "{} has {} entries {prefix}*", folder.display(), found.len());
    Ok(found.remove(0))
}

struct Unpacking<'a> {
    files: BTreeMap<String, PathBuf>,
    builtin: String,
    to: &'a Path,
    order: Vec<String>,
}

impl Unpacking<'_> {
    fn add(&mut self, name: &str, depth: usize) -> Result<()> {
        ensure!(depth < 32, "module {name} depends on itself");
        let name = name.replace('-', "_");
        let file_name = format!("{name}.ko");
        if self.order.contains(&file_name) {
            return Ok(());
        }
        let Some(path) = self.files.get(&name) else {
            let is_builtin = self.builtin.lines().any(|line| module_name(line) == name);
            ensure!(is_builtin, "the kernel has no module {name}");
            return Ok(());
        };
        let image = decompress(path)?;
        for dependency in dependencies(&image).with_context(|| format!("Module {name}"))? {
            self.add(&dependency, depth + 1)?;
        }
        fs::write(self.to.join(&file_name), image)?;
        self.order.push(file_name);
        Ok(())
    }
}

fn index(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            index(&entry.path(), files)?;
        } else if entry.file_name().to_string_lossy().contains(".ko") {
            files.insert(module_name(&entry.path().to_string_lossy()), entry.path());
        }
    }
    Ok(())
}

/// `kernel/arch/x86/kvm/kvm-amd.ko.xz` is `kvm_amd`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn decompress(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(fs::read(path)?);
    }
    let output = Command::new("xz").arg("-dc").arg(path).output().context("Cannot start xz")?;
    ensure!(output.status.success(), "xz cannot read {}", path.display());
    Ok(output.stdout)
}

/// The dependencies in a module's metadata: `depends=a,b`.
fn dependencies(image: &[u8]) -> Result<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let at = image.windows(KEY.len()).position(|w| w == KEY).context("states no dependencies")?;
    let value = &image[at + KEY.len()..];
    let end = value.iter().position(|b| *b == 0).context("is cut short")?;
    let value = std::str::from_utf8(&value[..end])?;
    Ok(value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_dependencies() {
        assert_eq!(module_name("kernel/arch/x86/kvm/kvm-amd.ko.xz"), "kvm_amd");
        assert_eq!(module_name("kernel/virt/lib/irqbypass.ko"), "irqbypass");
        let image = b"ELF\0license=GPL\0depends=kvm,ccp\0name=kvm_amd\0";
        assert_eq!(dependencies(image).unwrap(), ["kvm", "ccp"]);
        assert!(dependencies(b"\0depends=\0").unwrap().is_empty());
        assert!(dependencies(b"no module").is_err());
    }
}
