//! L2: real DMA. Reads the known image through the passthrough disk and compares it, writes data
//! the host compares later, and does so into memory spread over all of L2.

mod peer;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::OFlags;
use vfio_fast_agent::job::DiskLayout;
use vfio_fast_agent::record::{Event, L2_PORT};
use vfio_fast_agent::stream;

use crate::machine::{self, KernelLog};

const DISK: &str = "/dev/nvme0n1";
/// One transfer.
const CHUNK: usize = 64 << 10;
/// One place in memory: a huge page, of which only the first chunk is used.
const PLACE: usize = 2 << 20;

/// Runs L2 until the machine is reset or stopped from outside.
pub fn run(options: &BTreeMap<String, String>) -> Result<()> {
    machine::load_modules()?;
    let mut port = machine::open_port(L2_PORT)?;
    let mut messages = KernelLog::open()?;
    let outcome = match options.get("vft.plan").map(String::as_str) {
        Some("idle") => Ok(0),
        Some("peer") => peer::work(options, &mut port),
        _ => work(options, &mut port),
    };
    tell_messages(&mut messages, &mut port)?;
    match outcome {
        Ok(boot) => send(&mut port, &Event::Ready { boot })?,
        Err(error) => send(&mut port, &Event::Failed { error: format!("{error:#}") })?,
    }
    // L1 resets, unplugs or stops this machine now; what the kernel says to that counts too.
    let mut memory = 0;
    loop {
        tell_messages(&mut messages, &mut port)?;
        let now = machine::memory_mib();
        if memory != now {
            memory = now;
            send(&mut port, &Event::Memory { mib: now })?;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn tell_messages(messages: &mut KernelLog, port: &mut File) -> Result<()> {
    messages.new_lines()?.into_iter().try_for_each(|line| send(port, &Event::Dmesg { line }))
}

fn send(port: &mut File, event: &Event) -> Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    port.write_all(&line).context("cannot write to the event port")
}

fn number(options: &BTreeMap<String, String>, name: &str) -> Result<u64> {
    let text = options.get(name).with_context(|| format!("the kernel command line has no {name}"))?;
    text.parse().with_context(|| format!("{name}={text} is not a number"))
}

/// Moves the data of one boot; the answer is which boot it was.
fn work(options: &BTreeMap<String, String>, port: &mut File) -> Result<u64> {
    let image_seed = number(options, "vft.image_seed")?;
    let write_seed = number(options, "vft.write_seed")?;
    let layout = DiskLayout::of_mib(number(options, "vft.disk_mib")?);
    let spread_mib = number(options, "vft.spread_mib")?;
    if options.contains_key("vft.memory_mib") {
        // More is being plugged, and shall be used.
        let least = number(options, "vft.memory_mib")?;
        machine::wait_for(Duration::from_secs(60), || (machine::memory_mib() >= least).then_some(()))
            .with_context(|| format!("there are {} MiB of memory, not {least}", machine::memory_mib()))?;
    }

    let disk = machine::wait_for(Duration::from_secs(20), || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::DIRECT.bits().cast_signed())
            .open(DISK)
            .ok()
    })
    .with_context(|| format!("{DISK} did not appear"))?;

    let mut memory = Memory::new((spread_mib << 20) as usize / PLACE);
    let state = memory.chunk(0);
    let state = &mut state[..DiskLayout::STATE_BYTES as usize];
    disk.read_exact_at(state, layout.state_offset()).context("cannot read the boot counter")?;
    let boot = u64::from(state[0]);
    send(port, &Event::Up { boot })?;
    ensure!(boot < 2, "the disk says that {boot} boots have finished; only two are planned");

    if boot == 1 {
        // What the boot before the reset wrote.
        let (start, length) = layout.written_by(0);
        let moved = memory.verify(&disk, write_seed, start, length)?;
        send(port, &moved)?;
    }
    let (start, length) = layout.read_by(boot);
    let moved = memory.verify(&disk, image_seed, start, length)?;
    send(port, &moved)?;
    let (start, length) = layout.written_by(boot);
    let moved = memory.write(&disk, write_seed, start, length)?;
    send(port, &moved)?;

    let state = &mut memory.chunk(0)[..DiskLayout::STATE_BYTES as usize];
    state.fill(0);
    state[0] = boot as u8 + 1;
    disk.write_all_at(state, layout.state_offset()).context("cannot write the boot counter")?;
    disk.sync_all().context("cannot flush the disk")?;
    Ok(boot)
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
            if let Some(bad) = stream::first_difference(seed, at, chunk) {
                bail!("the disk differs at {bad:#x}");
            }
            Ok(())
        })
    }

    fn write(&mut self, disk: &File, seed: u64, start: u64, length: u64) -> Result<Event> {
        self.each("write", start, length, |chunk, at| {
            stream::fill(seed, at, chunk);
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
        let pagemap = File::open("/proc/self/pagemap")?;
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

/// What /proc/self/pagemap says about the page at `address`.
fn physical_address(pagemap: &File, address: u64) -> Result<u64> {
    let mut entry = [0u8; 8];
    pagemap.read_exact_at(&mut entry, address / 4096 * 8)?;
    let entry = u64::from_le_bytes(entry);
    ensure!(entry >> 63 == 1, "the page at {address:#x} is not present");
    Ok((entry & ((1 << 55) - 1)) * 4096)
}
