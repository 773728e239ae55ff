//! PCI devices as the kernel shows them in sysfs.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const DEVICES: &str = "/sys/bus/pci/devices";

/// A PCI device.
pub struct Device(PathBuf);

/// Where a BAR lies in this machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Address of its first byte.
    pub start: u64,
    /// How large it is.
    pub bytes: u64,
}

impl Device {
    /// The device at an address like `0000:00:04.0`.
    pub fn at(address: &str) -> Self {
        Self(Path::new(DEVICES).join(address))
    }

    /// The device whose file in /dev/vfio/devices has that name.
    pub fn of_file(name: &str) -> Self {
        Self(Path::new("/sys/class/vfio-dev").join(name).join("device"))
    }

    /// The only device of that vendor and type.
    pub fn of_type(vendor: u16, device: u16) -> Result<Self> {
        let mut found = Self::all_of_type(vendor, device)?;
        ensure!(found.len() == 1, "{} devices are {vendor:04x}:{device:04x}", found.len());
        found.pop().context("no such device")
    }

    /// All devices of that vendor and type.
    pub fn all_of_type(vendor: u16, device: u16) -> Result<Vec<Self>> {
        let is = |path: &Path, file: &str, wanted: u16| {
            let text = fs::read_to_string(path.join(file)).unwrap_or_default();
            text.trim() == format!("{wanted:#06x}")
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(DEVICES)? {
            let path = entry?.path();
            if is(&path, "vendor", vendor) && is(&path, "device", device) {
                found.push(Self(path));
            }
        }
        Ok(found)
    }

    /// One of its BARs.
    pub fn bar(&self, n: usize) -> Result<Bar> {
        let path = self.0.join("resource");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let bar = text.lines().nth(n).and_then(parse_bar);
        bar.with_context(|| format!("{} has no BAR {n}", self.0.display()))
    }

    /// The memory of one of its BARs.
    pub fn open_bar(&self, n: usize) -> Result<File> {
        let path = self.0.join(format!("resource{n}"));
        let file = OpenOptions::new().read(true).write(true).open(&path);
        file.with_context(|| format!("cannot open {}", path.display()))
    }

    /// Its configuration space.
    pub fn open_config(&self) -> Result<File> {
        let path = self.0.join("config");
        let config = OpenOptions::new().read(true).write(true).open(&path);
        config.with_context(|| format!("cannot open {}", path.display()))
    }

    /// Enables its BARs and bus mastering, as a driver would.
    pub fn enable(&self) -> Result<()> {
        const COMMAND: u64 = 4;
        const MEMORY_AND_MASTER: u16 = 0x6;
        let config = self.open_config()?;
        let mut command = [0u8; 2];
        config.read_exact_at(&mut command, COMMAND)?;
        let enabled = u16::from_le_bytes(command) | MEMORY_AND_MASTER;
        config.write_all_at(&enabled.to_le_bytes(), COMMAND).context("cannot write a PCI command")
    }
}

/// `0x0000000100000000 0x00000001ffffffff 0x000000000014220c`; a BAR that is not there is all zeroes.
fn parse_bar(line: &str) -> Option<Bar> {
    let mut words = line.split(' ').map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    let (start, last) = (words.next()??, words.next()??);
    (last > 0).then_some(Bar { start, bytes: last.checked_sub(start)? + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_read() {
        let line = "0x0000000100000000 0x00000001ffffffff 0x000000000014220c";
        assert_eq!(parse_bar(line), Some(Bar { start: 4 << 30, bytes: 4 << 30 }));
        assert_eq!(parse_bar("0x0000000000000000 0x0000000000000000 0x0000000000000000"), None);
        assert_eq!(parse_bar(""), None);
    }
}
