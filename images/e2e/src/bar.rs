//! The file behind a BAR: partly filled before the run, compared as a whole after it.

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

/// A file, mostly holes, and what has to be in it.
#[derive(Debug)]
pub struct Bar {
    /// The file.
    pub path: PathBuf,
    image_seed: u64,
    write_seed: u64,
    layout: BarLayout,
}

impl Bar {
    /// Makes the file, with the seeds of the run's disk.
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

    /// Compares the whole file with what L2's device has to leave.
    pub fn check(&self) -> Result<Check> {
        let file = File::open(&self.path)?;
        let length = fs::metadata(&self.path)?.len();
        let mut problems = Vec::new();
        if length != self.layout.bytes {
            problems.push(format!("the file has {length} bytes, expected {}", self.layout.bytes));
        }
        // A place may be a hole, and data may be where nothing belongs.
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

    /// Where something has to be, and of which stream.
    fn places(&self) -> impl Iterator<Item = (u64, u64)> {
        let of = |seed| move |at| (at, seed);
        let read = self.layout.read().into_iter().map(of(self.image_seed));
        read.chain(self.layout.written().into_iter().map(of(self.write_seed)))
    }

    /// What has to be in the page at `at`.
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

/// The pages that so many bytes lie in.
fn pages_of(at: u64, bytes: u64) -> impl Iterator<Item = u64> {
    (at - at % PAGE as u64..at + bytes).step_by(PAGE)
}

/// The next data or hole of a file from `at` on, if there is any.
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

    /// What L2's device does, done here.
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
        // Read, written, beside them, and where nothing is.
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
