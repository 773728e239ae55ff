//! A large guest with memory that is a small file, mapped repeatedly: the kernel maps, pins and unpins as many pages
//! as for distinct memory.

use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use vfio_fast_engine::addr::{HostVa, Iova, IovaRange};
use vfio_fast_engine::backend::{Backend, Mapping};
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Engine};

use crate::counted::Counted;
use crate::{Args, Mapper, tell};
use vfio_fast_measure::memory::Memory;
use vfio_fast_protocol::bench::calls::{Driver, Policy, Record, Unmap};
use vfio_fast_protocol::memory::MemoryKind;

const GIB: u64 = 1 << 30;
/// The size of the file, and of the entries that map it.
const ENTRY: u64 = GIB;
/// Above the reserved ranges of every IOMMU.
const START: u64 = 1 << 40;
/// Separates two steps, so that a count from L0's log is attributed to the right step even if the log line is late.
const PAUSE: Duration = Duration::from_millis(400);

/// Measures every policy once per round, on `gib` GiB in pages of `page` bytes.
pub fn measure(args: &Args, gib: u64, page: u64) -> Result<()> {
    let memory = Memory::new(if page > 4096 { MemoryKind::MemfdThp } else { MemoryKind::Memfd4k }, ENTRY)
        .context("Cannot map a file")?;
    memory.populate().context("Cannot fault in")?;
    if page > 4096 {
        ensure!(memory.huge_bytes() == ENTRY, "{} bytes are in huge pages", memory.huge_bytes());
    }
    for round in 0..args.rounds {
        for policy in Policy::ALL {
            let most = if policy == Policy::PageByPage { args.entries * page } else { u64::MAX };
            let bytes = (gib * GIB).min(most);
            let what = format!("{} GiB in pages of {} KiB, {}", bytes / GIB, page >> 10, policy.name());
            let mapper = Mapper::new(args, Driver::Type1, bytes / ENTRY)?;
            let counted = Counted::present(&mapper.backend);
            let calls = counted.calls.clone();
            let (seconds, map_seconds) = match policy {
                Policy::Bounded => bounded(counted, &memory, bytes, &what)?,
                Policy::OneCall => raw(&counted, &memory, bytes, ENTRY, bytes, &what)?,
                Policy::PageByPage => raw(&counted, &memory, bytes, page, page, &what)?,
            };
            tell(&Record::Unmap(Unmap {
                round,
                page,
                bytes,
                policy,
                calls: calls.unmaps.load(Ordering::Relaxed),
                seconds,
                longest_seconds: calls.longest_unmap().as_secs_f64(),
                map_seconds,
            }));
        }
    }
    Ok(())
}

/// Unmaps through the engine.
fn bounded(counted: Counted, memory: &Memory, bytes: u64, what: &str) -> Result<(f64, f64)> {
    let engine = Engine::new(Box::new(counted), Config::default())?;
    let start = Instant::now();
    engine.begin()?;
    for number in 0..bytes / ENTRY {
        let (perm, kind, backing) = (Perm::ReadWrite, Kind::Ram, Backing(0));
        let (range, hva) = (range(number * ENTRY, ENTRY)?, memory.hva());
        engine.map_region(Region { range, hva, perm, kind, backing, join: false, exact: true })?;
    }
    engine.commit()?;
    let map_seconds = start.elapsed().as_secs_f64();
    let seconds = timed(what, || Ok(engine.unmap(range(0, bytes)?)?))?;
    Ok((seconds, map_seconds))
}

/// Maps and unmaps in entries and calls of these sizes, without the engine.
fn raw(
    counted: &Counted,
    memory: &Memory,
    bytes: u64,
    entry: u64,
    call: u64,
    what: &str,
) -> Result<(f64, f64)> {
    let start = Instant::now();
    for iova in (0..bytes).step_by(entry as usize) {
        let hva: HostVa = memory.hva().checked_add(iova % ENTRY).context("The memory's end")?;
        let mapping = Mapping { range: range(iova, entry)?, hva, perm: Perm::ReadWrite };
        counted.map(&mapping, None).map_err(|errno| anyhow!("Cannot map {:#x}: {errno}", iova))?;
    }
    let map_seconds = start.elapsed().as_secs_f64();
    let seconds = timed(what, || {
        let mut gone = 0;
        for iova in (0..bytes).step_by(call as usize) {
            gone += counted.unmap(range(iova, call)?).map_err(|errno| anyhow!("Cannot unmap: {errno}"))?;
        }
        ensure!(gone == bytes, "{gone} bytes were unmapped");
        Ok(gone)
    })?;
    Ok((seconds, map_seconds))
}

fn timed(what: &str, unmap: impl FnOnce() -> Result<u64>) -> Result<f64> {
    eprintln!("{what}: unmap");
    sleep(PAUSE);
    let start = Instant::now();
    unmap()?;
    let took = start.elapsed();
    sleep(PAUSE);
    eprintln!("{what}: unmapped");
    sleep(PAUSE);
    Ok(took.as_secs_f64())
}

fn range(iova: u64, length: u64) -> Result<IovaRange> {
    IovaRange::new(Iova(START + iova), length).context("Not a range")
}
