//! Where the pages of a process are: `/proc/<pid>/pagemap`.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const PAGE: u64 = 4096;
/// An entry.
const ENTRY: usize = size_of::<u64>();
const PRESENT: u64 = 1 << 63;
/// The page is not in the page tables, and yet it exists. As these machines do not swap, the kernel is moving it, which
/// it does when it offlines or compacts memory; or the page is bad.
const ELSEWHERE: u64 = 1 << 62;
const FRAME: u64 = (1 << 55) - 1;
/// The kernel moves a page within milliseconds, or longer on a busy host.
const MOVED_WITHIN: Duration = Duration::from_secs(30);

pub struct Pagemap(File);

impl Pagemap {
    /// Of this process.
    pub fn own() -> Result<Self> {
        Self::open("/proc/self/pagemap")
    }

    pub fn of(pid: u32) -> Result<Self> {
        Self::open(&format!("/proc/{pid}/pagemap"))
    }

    fn open(path: &str) -> Result<Self> {
        Ok(Self(File::open(path).with_context(|| format!("cannot open {path}"))?))
    }

    /// The physical address of the page at `address`, if there is one. Waits while the kernel moves the page.
    pub fn physical(&self, address: u64) -> Result<Option<u64>> {
        let frame = settled(|| Ok(self.entries(address..address + PAGE)?[0]), MOVED_WITHIN)?;
        Ok(frame.map(|frame| frame * PAGE))
    }

    /// Which pages of that range there are, even if the kernel is moving them.
    pub fn exist(&self, range: Range<u64>) -> Result<Vec<bool>> {
        Ok(self.entries(range)?.into_iter().map(|entry| entry & (PRESENT | ELSEWHERE) != 0).collect())
    }

    fn entries(&self, range: Range<u64>) -> Result<Vec<u64>> {
        let mut bytes = vec![0; ((range.end - range.start) / PAGE) as usize * ENTRY];
        let read = self.0.read_exact_at(&mut bytes, range.start / PAGE * ENTRY as u64);
        read.with_context(|| format!("cannot read where the pages of {range:x?} are"))?;
        Ok(bytes.as_chunks().0.iter().map(|entry| u64::from_ne_bytes(*entry)).collect())
    }
}

/// The page frame in an entry once the page is not being moved; none if it does not exist, or stays away that long.
fn settled(mut entry: impl FnMut() -> Result<u64>, limit: Duration) -> Result<Option<u64>> {
    let start = Instant::now();
    loop {
        let entry = entry()?;
        if entry & PRESENT != 0 {
            return Ok(Some(entry & FRAME));
        }
        if entry & ELSEWHERE == 0 || start.elapsed() >= limit {
            return Ok(None);
        }
        sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_being_moved_is_waited_for() {
        // The second one was read in a guest whose memory was compacted.
        let mut entries = [0x4080_0000_0236_001e, 0x4080_0000_0236_001e, 0x8180_0000_0000_1234].into_iter();
        let frame = settled(|| Ok(entries.next().unwrap()), Duration::from_secs(60)).unwrap();
        assert_eq!((frame, entries.next()), (Some(0x1234), None));
    }

    #[test]
    fn a_page_that_does_not_exist_or_is_bad_has_no_address() {
        assert_eq!(settled(|| Ok(0), Duration::from_secs(60)).unwrap(), None);
        assert_eq!(settled(|| Ok(ELSEWHERE | 7), Duration::from_millis(5)).unwrap(), None);
    }

    #[test]
    fn pages_exist_once_they_are_written_to() {
        const MIB: usize = 1 << 20;
        // Zeroed memory of this size comes untouched from the kernel. Between what is written to and what is not there
        // is more than a huge page.
        let mut memory = vec![0u8; 8 * MIB + PAGE as usize];
        let first = memory.as_ptr().align_offset(PAGE as usize);
        let start = memory.as_ptr().addr() as u64 + first as u64;
        let (written, untouched) = ([MIB, 7 * MIB], 4 * MIB);
        written.into_iter().for_each(|at| memory[first + at] = 1);
        let pagemap = Pagemap::own().unwrap();
        let exist = pagemap.exist(start..start + 8 * MIB as u64).unwrap();
        let [low, high, between] = [written[0], written[1], untouched].map(|at| exist[at / PAGE as usize]);
        assert_eq!((low, high, between), (true, true, false));
        assert!(pagemap.physical(start + written[0] as u64).unwrap().is_some());
        assert_eq!(pagemap.physical(start + untouched as u64).unwrap(), None);
    }
}
