//! The file that backs a BAR: partly filled before the run, compared as a whole after it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use vfio_fast_protocol::bar_layout::BarLayout;
use vfio_fast_protocol::test_data;

use super::disk::Disk;
use super::records::Check;

const PAGE: usize = BarLayout::CHUNK as usize;

/// A sparse file and the contents expected in it.
#[derive(Debug)]
pub struct Bar {
    pub path: PathBuf,
    image_seed: u64,
    write_seed: u64,
    layout: BarLayout,
}

impl Bar {
    /// Creates the file, with the same seeds as the run's disk.
    pub fn create(path: &Path, mib: u64, disk: &Disk) -> Result<Self> {
        let layout = BarLayout::of_mib(mib);
        let bar =
            Self { path: path.into(), image_seed: disk.image_seed, write_seed: disk.write_seed, layout };
        let file = File::create(path).with_context(|| format!("Cannot create {}", path.display()))?;
        file.set_len(layout.bytes)?;
        let mut page = [0u8; PAGE];
        for at in layout.read() {
            test_data::fill(bar.image_seed, at, &mut page);
            file.write_all_at(&page, at)?;
        }
        Ok(bar)
    }

    /// Compares the whole file with the contents expected after a run.
    pub fn check(&self) -> Result<Check> {
        let file = File::open(&self.path)?;
        let length = fs::metadata(&self.path)?.len();
        let mut problems = Vec::new();
        if length != self.layout.bytes {
            problems.push(format!("the file has {length} bytes, expected {}", self.layout.bytes));
        }
        // Compare every page with expected data, even if it is a hole, and every page with data, even if a hole is
        // expected.
        let mut pages: BTreeSet<u64> =
            self.places().flat_map(|(at, _)| pages_of(at, BarLayout::CHUNK)).collect();
        let mut at = 0;
        while let Some(data) = seek(&file, SeekFrom::Data(at))? {
            at = seek(&file, SeekFrom::Hole(data))?.unwrap_or(length);
            pages.extend(pages_of(data, at - data));
        }
        let (mut found, mut expected) = ([0u8; PAGE], [0u8; PAGE]);
        for at in pages.range(..self.layout.bytes.min(length)) {
            file.read_exact_at(&mut found, *at)?;
            self.expect(*at, &mut expected);
            if let Some(n) = found.iter().zip(&expected).position(|(a, b)| a != b) {
                problems.push(format!("the file differs at {:#x}", at + n as u64));
            }
        }
        problems.truncate(5);
        let ok = problems.is_empty();
        let detail =
            if ok { format!("{} pages as expected, holes else", pages.len()) } else { problems.join("; ") };
        Ok(Check { name: "bar".into(), ok, detail })
    }

    /// The offset of every chunk with data, and the seed of its contents.
    fn places(&self) -> impl Iterator<Item = (u64, u64)> {
        let of = |seed| move |at| (at, seed);
        let read = self.layout.read().into_iter().map(of(self.image_seed));
        read.chain(self.layout.written().into_iter().map(of(self.write_seed)))
    }

    /// Fills `page` with the contents expected at `at`.
    fn expect(&self, at: u64, page: &mut [u8; PAGE]) {
        page.fill(0);
        let mut chunk = [0u8; PAGE];
        for (place, seed) in self.places() {
            let (from, to) = (place.max(at), (place + BarLayout::CHUNK).min(at + PAGE as u64));
            if from < to {
                test_data::fill(seed, place, &mut chunk);
                let theirs = &chunk[(from - place) as usize..(to - place) as usize];
                page[(from - at) as usize..(to - at) as usize].copy_from_slice(theirs);
            }
        }
    }
}

/// The pages that a range touches.
fn pages_of(at: u64, bytes: u64) -> impl Iterator<Item = u64> {
    (at - at % PAGE as u64..at + bytes).step_by(PAGE)
}

/// Finds the next data or hole of a file from an offset on; `None` if there is none.
fn seek(file: &File, to: SeekFrom) -> Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno).context("cannot look for holes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// Writes what L2's device writes in a run.
    fn as_after_the_run(bar: &Bar, file: &File) {
        let mut page = [0u8; PAGE];
        for at in bar.layout.written() {
            test_data::fill(bar.write_seed, at, &mut page);
            file.write_all_at(&page, at).unwrap();
        }
    }

    #[test]
    fn every_byte_counts() {
        let scratch = vfio_fast_assets::paths::target().join("test-scratch");
        fs::create_dir_all(&scratch).unwrap();
        let path = scratch.join(format!("bar-{}.img", std::process::id()));
        let disk = Disk::create(&path, 1, 42).unwrap();
        let bar = Bar::create(&path, 2048, &disk).unwrap();
        assert!(!bar.check().unwrap().ok, "an untouched file must not pass");
        let file = File::options().read(true).write(true).open(&path).unwrap();
        as_after_the_run(&bar, &file);
        let check = bar.check().unwrap();
        assert!(check.ok, "{}", check.detail);
        // Chunks that are read, chunks that are written, the bytes next to them, and holes.
        for at in [0, 4096, GIB - 2049, GIB - 2048, GIB + 2048, GIB + 9000, GIB / 2, 2 * GIB - 1] {
            let mut byte = [0u8];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            let check = bar.check().unwrap();
            assert_eq!(check.detail, format!("the file differs at {at:#x}"));
            file.write_all_at(&byte, at).unwrap();
        }
        fs::remove_file(path).unwrap();
    }
}
