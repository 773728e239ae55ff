//! A device writes to L2's memory while L2 is migrated: the kernel's sample device mtty, which a patch lets write
//! increasing numbers. L2 touches none of that memory, so only VFIO knows that it changes.

use std::fs::File;
use std::hint;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vfio_fast_protocol::record::Event;
use vfio_fast_protocol::test_data;

use super::mmio::Window;
use super::{physical_address, send};
use crate::machine;
use crate::pagemap::Pagemap;
use crate::pci::Device;
use crate::wait::{Seen, wait_for};

/// Everything else that L1 waits for happens meanwhile.
const WITHIN: Duration = Duration::from_secs(240);
const PAGE: usize = 4096;
const WORD: usize = size_of::<u64>();
/// The device writes to one page in two of a huge page, whose pages are adjacent in L2's physical memory.
const BUFFER: usize = 2 << 20;
const PAGES: usize = BUFFER / PAGE / 2;
/// Further memory that has to arrive.
const PATTERN: usize = 64 << 20;
/// What L2 itself writes to all the time: more than QEMU may leave for when L2 stands still, so that it goes on sending.
const BUSY: usize = 4 << 20;
/// The device has to go on for so long at the destination: every page is written to again.
const FURTHER: u32 = 4 * PAGES as u32;

/// Starts the device, waits so many times until it is another one, and each time stops that, compares, and starts it again.
pub fn work(seed: u64, times: u32, port: &mut File) -> Result<u64> {
    send(port, &Event::Up { boot: 0 })?;
    machine::set("/proc/sys/vm/nr_hugepages", "1")?;
    let buffer = Window::huge(BUFFER)?;
    for page in unwritten() {
        buffer.store_at(page * PAGE, &stream::<PAGE>(seed ^ page as u64))?;
    }
    let pagemap = Pagemap::own()?;
    let at = physical_address(&pagemap, buffer.address())?;

    let device = Writer(Device::of_type(0x4348, 0x3253)?.open_config()?);
    device.start(at)?;
    let written = device.wait(2 * PAGES as u32)?;
    let mut busy = vec![0u8; BUSY];
    for time in 0..times {
        // Memory that is plugged by now is used first.
        let mut pattern = vec![0; PATTERN];
        test_data::fill(seed, 0, &mut pattern);
        if time == 0 {
            send(port, &Event::Writing { at, pages: PAGES as u64, written: written.into() })?;
        } else {
            device.go_on()?;
        }
        wait_for("a migration", WITHIN, || {
            busy.iter_mut().step_by(PAGE).for_each(|byte| *byte = byte.wrapping_add(1));
            hint::black_box(&mut busy);
            let moves = device.read(Writer::MOVES)?;
            Ok(Seen::of((moves > time).then_some(()), || format!("loaded {moves} times")))
        })?;
        let loaded = device.read(Writer::LOADED)?;
        device.wait(loaded + FURTHER)?;
        let written = device.stop()?;
        ensure!(physical_address(&pagemap, buffer.address())? == at, "the buffer has moved");
        send(port, &compared(seed, at, &buffer, &pattern, (loaded, written))?)?;
    }
    Ok(0)
}

/// Compares what the device and L2 itself have written with what is there. The device had written so often when it was
/// loaded, and when it was stopped.
fn compared(
    seed: u64,
    at: u64,
    buffer: &Window,
    pattern: &[u8],
    (loaded, written): (u32, u32),
) -> Result<Event> {
    let mut lost = Vec::new();
    for page in 0..PAGES {
        for word in 0..PAGE / WORD {
            let offset = 2 * page * PAGE + word * WORD;
            if buffer.read(offset)? != last_written(page, word, written) {
                lost.push(at + offset as u64);
            }
        }
    }
    let mut changed = differences(seed, pattern);
    for page in unwritten() {
        let mut now = [0; PAGE];
        buffer.load_at(page * PAGE, &mut now)?;
        changed += differences(seed ^ page as u64, &now);
    }
    let (loaded, written) = (loaded.into(), written.into());
    Ok(Event::Migrated {
        loaded,
        written,
        lost: lost.len() as u64,
        first_lost: lost.first().copied(),
        changed,
    })
}

/// The pages of the buffer that the device leaves alone.
fn unwritten() -> impl Iterator<Item = usize> {
    (0..PAGES).map(|n| 2 * n + 1)
}

/// The first bytes of the stream of that seed.
fn stream<const N: usize>(seed: u64) -> [u8; N] {
    let mut bytes = [0; N];
    test_data::fill(seed, 0, &mut bytes);
    bytes
}

/// How many words differ from the stream of that seed.
fn differences(seed: u64, bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(WORD).zip((0..).step_by(WORD));
    words.filter(|(word, at)| test_data::first_difference(seed, *at, word).is_some()).count() as u64
}

/// What the device has written last to that word of its page of that number, after so many writes; 0 if nothing.
///
/// It writes to each page in turn, then to the next word of each.
fn last_written(page: usize, word: usize, written: u32) -> u64 {
    const PLACES: u64 = (PAGES * PAGE / WORD) as u64;
    let first = (word * PAGES + page) as u64;
    match u64::from(written).checked_sub(first + 1) {
        Some(after) => first + 1 + after / PLACES * PLACES,
        None => 0,
    }
}

/// The registers that the patch adds to the device, in its configuration space.
struct Writer(File);

impl Writer {
    const BASE_LOW: u64 = 0x80;
    const BASE_HIGH: u64 = 0x84;
    const PAGES: u64 = 0x88;
    const RUN: u64 = 0x8c;
    const WRITTEN: u64 = 0x90;
    const LOADED: u64 = 0x94;
    const MOVES: u64 = 0x98;
    const ERROR: u64 = 0x9c;

    fn start(&self, at: u64) -> Result<()> {
        self.write(Self::BASE_LOW, at as u32)?;
        self.write(Self::BASE_HIGH, (at >> 32) as u32)?;
        self.write(Self::PAGES, PAGES as u32)?;
        self.go_on()
    }

    fn go_on(&self) -> Result<()> {
        self.write(Self::RUN, 1)
    }

    /// Stops it; returns how often it has written.
    fn stop(&self) -> Result<u32> {
        self.write(Self::RUN, 0)?;
        self.read(Self::WRITTEN)
    }

    /// Waits until it has written so often.
    fn wait(&self, times: u32) -> Result<u32> {
        wait_for("the device to write", WITHIN, || {
            let error = self.read(Self::ERROR)?.cast_signed();
            ensure!(error == 0, "the device cannot write: {error}");
            let written = self.read(Self::WRITTEN)?;
            Ok(Seen::of((written >= times).then_some(written), || format!("{written} of {times} writes")))
        })
    }

    fn read(&self, register: u64) -> Result<u32> {
        let mut value = [0; 4];
        let read = self.0.read_exact_at(&mut value, register);
        read.with_context(|| format!("cannot read the register {register:#x}"))?;
        Ok(u32::from_le_bytes(value))
    }

    fn write(&self, register: u64, value: u32) -> Result<()> {
        let written = self.0.write_all_at(&value.to_le_bytes(), register);
        written.with_context(|| format!("cannot write the register {register:#x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_writes_are_known() {
        let mut memory = vec![[0u64; PAGE / WORD]; PAGES];
        let words = PAGE / WORD;
        let total = PAGES * words + 1000;
        for n in 0..total {
            memory[n % PAGES][n / PAGES % words] = n as u64 + 1;
        }
        for (page, page_words) in memory.iter().enumerate() {
            for (word, &value) in page_words.iter().enumerate() {
                assert_eq!(last_written(page, word, total as u32), value, "{page} {word}");
            }
        }
        assert_eq!(last_written(0, 0, 0), 0);
        assert_eq!((last_written(1, 0, 1), last_written(1, 0, 2)), (0, 2));
    }

    #[test]
    fn each_word_that_differs_is_counted() {
        let mut page: [u8; PAGE] = stream(7);
        assert_eq!(differences(7, &page), 0);
        page[8] ^= 1;
        page[4088] ^= 1;
        assert_eq!(differences(7, &page), 2);
    }
}
