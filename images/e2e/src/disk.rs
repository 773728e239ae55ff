//! The disk under test: created before the run, compared byte for byte after it.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use vfio_fast_assets::progress;
use vfio_fast_protocol::job::DiskLayout;
use vfio_fast_protocol::test_data;

use super::records::Check;

const CHUNK: usize = 64 << 10;

/// A disk image and the contents expected in it.
#[derive(Debug)]
pub struct Disk {
    pub path: PathBuf,
    /// Seed of the initial contents.
    pub image_seed: u64,
    /// Seed of the data that L2 writes.
    pub write_seed: u64,
    layout: DiskLayout,
}

impl Disk {
    /// Creates the image.
    pub fn create(path: &Path, mib: u64, seed: u64) -> Result<Self> {
        let disk =
            Self { path: path.into(), image_seed: seed, write_seed: !seed, layout: DiskLayout::of_mib(mib) };
        let file = File::create(path).with_context(|| format!("Cannot create {}", path.display()))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let mut chunk = vec![0u8; CHUNK];
        for at in (0..disk.layout.bytes).step_by(CHUNK) {
            test_data::fill(disk.image_seed, at, &mut chunk);
            if at + CHUNK as u64 > disk.layout.state_offset() {
                let state = (disk.layout.state_offset() - at) as usize;
                chunk[state..].fill(0);
            }
            file.write_all(&chunk)?;
        }
        file.flush()?;
        Ok(disk)
    }

    /// Makes an empty ext4 file system on an image.
    pub fn format(path: &Path) -> Result<()> {
        progress::output(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(path)).map(drop)
    }

    /// Compares the whole image with the contents expected after two boots of L2.
    pub fn check(&self) -> Result<Check> {
        let mut file = File::open(&self.path)?;
        let length = fs::metadata(&self.path)?.len();
        let mut problems = Vec::new();
        if length != self.layout.bytes {
            problems.push(format!("the disk has {length} bytes, expected {}", self.layout.bytes));
        }
        let mut found = vec![0u8; CHUNK];
        let mut expected = vec![0u8; CHUNK];
        for at in (0..self.layout.bytes.min(length)).step_by(CHUNK) {
            file.read_exact(&mut found)?;
            self.expect(at, &mut expected);
            if let Some(n) = found.iter().zip(&expected).position(|(a, b)| a != b) {
                problems.push(format!("the disk differs at {:#x}", at + n as u64));
                break;
            }
        }
        let ok = problems.is_empty();
        let detail = if ok { format!("{length} bytes as expected") } else { problems.join("; ") };
        Ok(Check { name: "disk".into(), ok, detail })
    }

    /// Fills `chunk` with the contents expected at `at` after both boots.
    fn expect(&self, at: u64, chunk: &mut [u8]) {
        let written = [0, 1].map(|boot| self.layout.written_by(boot));
        let is_written = written.iter().any(|(start, length)| (*start..start + length).contains(&at));
        let seed = if is_written { self.write_seed } else { self.image_seed };
        test_data::fill(seed, at, chunk);
        if at + chunk.len() as u64 > self.layout.state_offset() {
            let state = (self.layout.state_offset() - at) as usize;
            chunk[state..].fill(0);
            chunk[state] = 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// Writes what L2 writes in both boots.
    fn as_after_two_boots(disk: &Disk) {
        let file = File::options().write(true).open(&disk.path).unwrap();
        for (start, length) in [disk.layout.written_by(0), disk.layout.written_by(1)] {
            let mut data = vec![0u8; length as usize];
            test_data::fill(disk.write_seed, start, &mut data);
            file.write_all_at(&data, start).unwrap();
        }
        file.write_all_at(&[2], disk.layout.state_offset()).unwrap();
    }

    #[test]
    fn every_byte_counts() {
        let scratch = vfio_fast_assets::paths::target().join("test-scratch");
        fs::create_dir_all(&scratch).unwrap();
        let path = scratch.join(format!("disk-{}.img", std::process::id()));
        let disk = Disk::create(&path, 4, 42).unwrap();
        assert!(!disk.check().unwrap().ok, "an untouched disk must not pass");
        as_after_two_boots(&disk);
        let check = disk.check().unwrap();
        assert!(check.ok, "{}", check.detail);
        let file = File::options().read(true).write(true).open(&path).unwrap();
        for at in [0, (1 << 20) + 77, disk.layout.state_offset() - 1, disk.layout.bytes - 1] {
            let mut byte = [0u8];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            let check = disk.check().unwrap();
            assert_eq!(check.detail, format!("the disk differs at {at:#x}"));
            file.write_all_at(&byte, at).unwrap();
        }
        fs::remove_file(path).unwrap();
    }
}
