//! Moves data through passthrough disks, and reports where its buffers were.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::OFlags;
use vfio_fast_protocol::job::DiskLayout;
use vfio_fast_protocol::l2_job::DiskJob;
use vfio_fast_protocol::record::Event;
use vfio_fast_protocol::test_data;

use super::{physical_address, send};
use crate::machine;
use crate::pagemap::Pagemap;
use crate::wait::{Seen, wait_for};

/// The serial numbers of the disks there may be.
const FIRST: &str = "vft0";
const SECOND: &str = "vft1";
/// Long enough for a driver or for memory to appear on a busy host.
const WITHIN: Duration = Duration::from_secs(240);
/// One transfer.
const CHUNK: usize = 64 << 10;
/// One place in memory: a huge page, of which only the first chunk is used.
const PLACE: usize = 2 << 20;

/// Moves the data of one boot; returns which boot it was.
pub fn work(job: &DiskJob, port: &mut File) -> Result<u64> {
    if let Some(min_mib) = job.memory_mib {
        wait_for(&format!("{min_mib} MiB of memory"), WITHIN, || {
            let now = machine::memory_mib();
            Ok(Seen::of((now >= min_mib).then_some(()), || format!("{now} MiB")))
        })?;
    }
    let layout = DiskLayout::of_mib(job.disk_mib);
    let disk = open(FIRST)?;

    let mut memory = Memory::of(job);
    let state = memory.chunk(0);
    let state = &mut state[..DiskLayout::STATE_BYTES as usize];
    disk.read_exact_at(state, layout.state_offset()).context("cannot read the boot counter")?;
    let boot = u64::from(state[0]);
    send(port, &Event::Up { boot })?;
    ensure!(boot < 2, "{boot} boots have finished according to the disk; only two are planned");

    if boot == 1 {
        // What the boot before the reset wrote.
        let (start, length) = layout.written_by(0);
        let moved = memory.verify(&disk, job.write_seed, start, length)?;
        send(port, &moved)?;
    }
    let (start, length) = layout.read_by(boot);
    let moved = memory.verify(&disk, job.image_seed, start, length)?;
    send(port, &moved)?;
    let (start, length) = layout.written_by(boot);
    let moved = memory.write(&disk, job.write_seed, start, length)?;
    send(port, &moved)?;

    if let Some(mib) = job.second_mib {
        // Unlike the first disk, the second one is written as a whole in every boot.
        let length = mib << 20;
        let second = open(SECOND)?;
        for moved in [
            memory.write(&second, job.write_seed, 0, length)?,
            memory.verify(&second, job.write_seed, 0, length)?,
        ] {
            send(port, &moved)?;
        }
    }

    let state = &mut memory.chunk(0)[..DiskLayout::STATE_BYTES as usize];
    state.fill(0);
    state[0] = boot as u8 + 1;
    disk.write_all_at(state, layout.state_offset()).context("cannot write the boot counter")?;
    disk.sync_all().context("cannot flush the disk")?;
    Ok(boot)
}

/// Writes a part of the first disk and reads it, with other data each time, until the machine is stopped or this fails.
pub fn stream(
    job: &DiskJob,
    port: &mut File,
    mut between: impl FnMut(&mut File) -> Result<()>,
) -> Result<u64> {
    const MOST: u64 = 4 << 20;
    let bytes = ((job.disk_mib << 20) / 2).min(MOST);
    let disk = open(FIRST)?;
    let mut memory = Memory::of(job);
    send(port, &Event::Up { boot: 0 })?;
    let mut seed = job.write_seed;
    loop {
        memory.write(&disk, seed, 0, bytes)?;
        let moved = memory.verify(&disk, seed, 0, bytes)?;
        send(port, &moved)?;
        between(port)?;
        seed = seed.wrapping_add(1);
    }
}

/// Reads the image from the first disk.
pub fn read(job: &DiskJob, port: &mut File) -> Result<()> {
    let disk = open(FIRST)?;
    let mut memory = Memory::of(job);
    send(port, &Event::Up { boot: 0 })?;
    let layout = DiskLayout::of_mib(job.disk_mib);
    let moved = memory.verify(&disk, job.image_seed, 0, layout.state_offset() & !0xffff)?;
    send(port, &moved)
}

/// What was written, read once more through the first disk if that is there: another disk left, or this one came back.
pub fn again(job: &DiskJob, present: &BTreeMap<String, PathBuf>, port: &mut File) -> Result<()> {
    if !present.contains_key(FIRST) {
        return Ok(());
    }
    let (start, length) = DiskLayout::of_mib(job.disk_mib).written_by(0);
    let moved = Memory::of(job).verify(&open(FIRST)?, job.write_seed, start, length)?;
    send(port, &moved)
}

/// The disks that L2 has, by serial number.
pub fn present() -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/sys/class/nvme").into_iter().flatten().flatten() {
        // A controller may go while its folder is being read.
        let Ok(serial) = fs::read_to_string(entry.path().join("serial")) else { continue };
        let disk = PathBuf::from(format!("/dev/{}n1", entry.file_name().to_string_lossy()));
        if disk.exists() {
            found.insert(serial.trim().to_owned(), disk);
        }
    }
    found
}

fn open(serial: &str) -> Result<File> {
    wait_for(&format!("the disk {serial}"), WITHIN, || {
        let direct = OFlags::DIRECT.bits().cast_signed();
        let disks = present();
        let Some(path) = disks.get(serial) else { return Ok(Seen::NotYet(format!("only {disks:?}"))) };
        let file = OpenOptions::new().read(true).write(true).custom_flags(direct).open(path);
        Ok(file.map_or_else(|error| Seen::NotYet(format!("{}: {error}", path.display())), Seen::Done))
    })
}

/// A large allocation of which one chunk in every huge page is used, so that the addresses the
/// device is given lie all over L2 and yet little memory has to be cleared.
struct Memory {
    bytes: Vec<u8>,
    first: usize,
    places: usize,
    next: usize,
}

impl Memory {
    /// Buffers for that job.
    fn of(job: &DiskJob) -> Self {
        Self::new((job.spread_mib << 20) as usize / PLACE)
    }

    fn new(places: usize) -> Self {
        // Zeroed memory of this size comes untouched from the kernel.
        let bytes = vec![0u8; (places + 1) * PLACE];
        let first = bytes.as_ptr().align_offset(PLACE);
        Self { bytes, first, places, next: 0 }
    }

    fn chunk(&mut self, place: usize) -> &mut [u8] {
        let start = self.first + place * PLACE;
        &mut self.bytes[start..start + CHUNK]
    }

    fn take(&mut self) -> usize {
        let place = self.next;
        self.next = (self.next + 1) % self.places;
        place
    }

    fn verify(&mut self, disk: &File, seed: u64, start: u64, length: u64) -> Result<Event> {
        self.each("read", start, length, |chunk, at| {
            chunk.fill(0xee);
            disk.read_exact_at(chunk, at).with_context(|| format!("cannot read at {at:#x}"))?;
            if let Some(bad) = test_data::first_difference(seed, at, chunk) {
                bail!("the disk differs at {bad:#x}");
            }
            Ok(())
        })
    }

    fn write(&mut self, disk: &File, seed: u64, start: u64, length: u64) -> Result<Event> {
        self.each("write", start, length, |chunk, at| {
            test_data::fill(seed, at, chunk);
            disk.write_all_at(chunk, at).with_context(|| format!("cannot write at {at:#x}"))
        })
    }

    fn each(
        &mut self,
        what: &str,
        start: u64,
        length: u64,
        mut work: impl FnMut(&mut [u8], u64) -> Result<()>,
    ) -> Result<Event> {
        let pagemap = Pagemap::own()?;
        let (mut lowest, mut highest, mut slots) = (u64::MAX, 0, BTreeSet::new());
        for at in (start..start + length).step_by(CHUNK) {
            let place = self.take();
            let chunk = self.chunk(place);
            let address = chunk.as_ptr().addr() as u64;
            work(chunk, at).with_context(|| {
                let physical = physical_address(&pagemap, address).unwrap_or(0);
                format!("{what} into physical {physical:#x}")
            })?;
            let physical = physical_address(&pagemap, address)?;
            lowest = lowest.min(physical);
            highest = highest.max(physical);
            slots.insert(physical >> 26);
        }
        let slots = slots.len() as u64;
        Ok(Event::Moved { what: what.into(), bytes: length, lowest, highest, slots })
    }
}
