//! Compares exact regions, as a vIOMMU has them, with the calls of the kernel.

use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use vfio_fast_engine::addr::{HostVa, Iova, IovaRange};
use vfio_fast_engine::backend::{Backend, Mapping};
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Engine};

use crate::counted::Counted;
use crate::{Args, Mapper, tell};
use vfio_fast_measure::memory::Memory;
use vfio_fast_protocol::bench::calls::{Exact, Record, Sweep, Toggle};
use vfio_fast_protocol::memory::MemoryKind;

const SMALL: u64 = 4 << 10;
const HUGE: u64 = 2 << 20;
/// Bytes of host memory. Regions past its end map it again from its start.
const MEMORY: u64 = 64 << 20;
/// Above the reserved ranges of every IOMMU.
const START: u64 = 1 << 40;

/// Some regions of one size.
#[derive(Clone, Copy)]
struct Job {
    sweep: Sweep,
    bytes: u64,
    regions: u64,
}

/// Measures each job both ways, once per round and driver.
pub fn measure(args: &Args) -> Result<()> {
    let one_by_one = |bytes, regions| Job { sweep: Sweep::OneByOne, bytes, regions };
    let mut jobs: Vec<Job> = Vec::new();
    if let Some(regions) = args.exact {
        jobs.extend([one_by_one(SMALL, regions), one_by_one(HUGE, regions.div_ceil(10))]);
    }
    jobs.extend(args.at_once.iter().map(|&regions| Job { sweep: Sweep::AtOnce, bytes: SMALL, regions }));
    if jobs.is_empty() {
        return Ok(());
    }
    let memory = Memory::new(MemoryKind::AnonThp, MEMORY).context("Cannot map the memory")?;
    memory.populate().context("Cannot fault in")?;
    for round in 0..args.rounds {
        for (driver, job) in args.drivers.iter().flat_map(|driver| jobs.iter().map(|job| (*driver, *job))) {
            let Job { sweep, bytes, regions } = job;
            let what = format!("{regions} regions of {} KiB, {}", bytes >> 10, sweep.name());
            eprintln!("{what}, {driver}: round {} of {}", round + 1, args.rounds);
            let mut toggles = [Toggle::default(); 2];
            // Alternate the order, so that a drift within a round does not favour one way.
            for way in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                let mapper = Mapper::new(args, driver, regions)?;
                let counted = Counted::unchanged(&mapper.backend);
                toggles[way] =
                    if way == 0 { raw(&counted, job, &memory)? } else { library(counted, job, &memory)? };
            }
            let [raw, library] = toggles;
            tell(&Record::Exact(Exact { round, driver, sweep, bytes, regions, raw, library }));
        }
    }
    Ok(())
}

fn raw(counted: &Counted, job: Job, memory: &Memory) -> Result<Toggle> {
    let map_seconds = job.map(memory, |range, hva| {
        let mapping = Mapping { range, hva, perm: Perm::ReadWrite };
        counted.map(&mapping, None).map_err(|errno| anyhow!("Cannot map {range}: {errno}"))
    })?;
    let unmap = |range| counted.unmap(range).map_err(|errno| anyhow!("Cannot unmap {range}: {errno}"));
    let unmap_seconds = job.unmap(unmap)?;
    Ok(Toggle { calls: counted.calls.both(), map_seconds, unmap_seconds })
}

fn library(counted: Counted, job: Job, memory: &Memory) -> Result<Toggle> {
    let calls = counted.calls.clone();
    let engine = Engine::new(Box::new(counted), Config::default())?;
    let start = Instant::now();
    if job.sweep == Sweep::AtOnce {
        engine.begin()?;
    }
    let mut map_seconds = job.map(memory, |range, hva| {
        let (perm, kind, backing) = (Perm::ReadWrite, Kind::Ram, Backing(1));
        Ok(engine.map_region(Region { range, hva, perm, kind, backing, join: false, exact: true })?)
    })?;
    if job.sweep == Sweep::AtOnce {
        engine.commit()?;
        map_seconds = start.elapsed().as_secs_f64();
    }
    let unmap_seconds = job.unmap(|range| Ok(engine.unmap(range)?))?;
    Ok(Toggle { calls: calls.both(), map_seconds, unmap_seconds })
}

impl Job {
    fn range(self, number: u64) -> Result<IovaRange> {
        // A gap after each region, so that none is adjacent to another.
        IovaRange::new(Iova(START + number * 2 * self.bytes), self.bytes).context("Not a range")
    }

    fn hva(self, number: u64, memory: &Memory) -> Result<HostVa> {
        memory.hva().checked_add(number * self.bytes % MEMORY).context("The memory's end")
    }

    /// Maps all regions by `map`; returns the seconds.
    fn map(self, memory: &Memory, map: impl Fn(IovaRange, HostVa) -> Result<()>) -> Result<f64> {
        self.each(|number| map(self.range(number)?, self.hva(number, memory)?))
    }

    /// Unmaps all regions by `unmap`, which returns the number of bytes; returns the seconds.
    fn unmap(self, unmap: impl Fn(IovaRange) -> Result<u64>) -> Result<f64> {
        let unmap = |range, expected| {
            let bytes = unmap(range)?;
            ensure!(bytes == expected, "{bytes} bytes were unmapped and not {expected}");
            Ok(())
        };
        if self.sweep == Sweep::OneByOne {
            return self.each(|number| unmap(self.range(number)?, self.bytes));
        }
        let all = IovaRange::new(Iova(START), self.regions * 2 * self.bytes).context("Not a range")?;
        let start = Instant::now();
        unmap(all, self.regions * self.bytes)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Makes one call per region; returns the seconds. One by one, each counts as the median of all, because a call
    /// during which this thread did not run says nothing.
    fn each(self, call: impl Fn(u64) -> Result<()>) -> Result<f64> {
        let mut times = Vec::new();
        let all = Instant::now();
        for number in 0..self.regions {
            let start = Instant::now();
            call(number)?;
            times.push(start.elapsed());
        }
        if self.sweep == Sweep::AtOnce {
            return Ok(all.elapsed().as_secs_f64());
        }
        times.sort_unstable();
        Ok(times[times.len() / 2].as_secs_f64() * self.regions as f64)
    }
}
