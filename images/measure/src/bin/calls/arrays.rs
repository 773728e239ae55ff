//! Compares the engine's arrays of pages with one call per page.

use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use vfio_fast_engine::addr::{HostVa, Iova, IovaRange};
use vfio_fast_engine::backend::Mapping;
use vfio_fast_engine::region::{Backing, Perm};
use vfio_fast_engine::{Config, Engine};

use crate::counted::Counted;
use crate::{Args, Mapper, tell};
use vfio_fast_measure::memory::Memory;
use vfio_fast_protocol::bench::calls::{Array, Record, Shape, Toggle};
use vfio_fast_protocol::memory::MemoryKind;

const PAGE: u64 = 4 << 10;
const RUN: u64 = 8;

type Pages = Vec<(Iova, HostVa)>;

/// Measures each shape both ways, once per round.
pub fn measure(args: &Args, count: u64) -> Result<()> {
    // The shapes use at most every other page.
    let memory = Memory::new(MemoryKind::Memfd4k, 2 * count * PAGE).context("Cannot map the memory")?;
    memory.populate().context("Cannot fault in")?;
    for round in 0..args.rounds {
        let cases = args.drivers.iter().flat_map(|driver| Shape::ALL.map(|shape| (*driver, shape)));
        for (driver, shape) in cases {
            let name = shape.name();
            eprintln!("{count} pages {name}, {driver:?}: round {} of {}", round + 1, args.rounds);
            let pages = pages(shape, count, memory.hva())?;
            let mut toggles = [Toggle::default(); 2];
            // Alternate the order, so that a drift within a round does not favour one way.
            for way in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                let mapper = Mapper::new(args, driver, count)?;
                toggles[way] = if way == 0 { one_by_one(&mapper, &pages)? } else { array(&mapper, &pages)? };
            }
            let [page_by_page, array] = toggles;
            tell(&Record::Array(Array { round, driver, shape, pages: count, page_by_page, array }));
        }
    }
    Ok(())
}

fn one_by_one(mapper: &Mapper, pages: &Pages) -> Result<Toggle> {
    let start = Instant::now();
    for (iova, hva) in pages {
        let mapping = Mapping { range: page(*iova)?, hva: *hva, perm: Perm::ReadWrite };
        mapper.backend.map(&mapping, None).map_err(|errno| anyhow!("Cannot map {iova:?}: {errno}"))?;
    }
    let mapped = Instant::now();
    for (iova, _) in pages {
        let bytes = mapper.backend.unmap(page(*iova)?);
        ensure!(bytes == Ok(PAGE), "Unmapping {iova:?}: {bytes:?}");
    }
    let (map_seconds, unmap_seconds) = ((mapped - start).as_secs_f64(), mapped.elapsed().as_secs_f64());
    Ok(Toggle { calls: 2 * pages.len() as u64, map_seconds, unmap_seconds })
}

fn array(mapper: &Mapper, pages: &Pages) -> Result<Toggle> {
    let counted = Counted::present(&mapper.backend);
    let calls = counted.calls.clone();
    let engine = Engine::new(Box::new(counted), Config::default())?;
    let start = Instant::now();
    engine.map_pages(pages.iter().copied(), Perm::ReadWrite, Backing(1), false)?;
    let mapped = Instant::now();
    let bytes = engine.unmap_pages(pages.iter().map(|(iova, _)| *iova))?;
    let unmap_seconds = mapped.elapsed().as_secs_f64();
    ensure!(bytes == pages.len() as u64 * PAGE, "{bytes} bytes were unmapped");
    Ok(Toggle { calls: calls.both(), map_seconds: (mapped - start).as_secs_f64(), unmap_seconds })
}

fn page(iova: Iova) -> Result<IovaRange> {
    IovaRange::new(iova, PAGE).context("Not a range")
}

fn pages(shape: Shape, count: u64, hva: HostVa) -> Result<Pages> {
    let at = |place: u64| -> Result<(Iova, HostVa)> {
        let hva = hva.checked_add(place * PAGE).context("The memory's end")?;
        Ok((Iova((4 << 30) + place * PAGE), hva))
    };
    let mut places: Vec<u64> = match shape {
        Shape::Row => (0..count).collect(),
        // Skip as many pages after each run as the run has.
        Shape::Mixed => (0..count).map(|n| n + n / RUN * RUN).collect(),
        Shape::Random => (0..count).map(|n| 2 * n).collect(),
    };
    if shape == Shape::Random {
        // The same pseudo-random order each time: a linear congruential generator that visits every page.
        let count = count.next_power_of_two();
        let order = (0..count).scan(0u64, |last, _| {
            *last = (*last * 5 + 12_345) % count;
            Some(*last)
        });
        places = order.filter_map(|n| places.get(n as usize).copied()).collect();
    }
    places.into_iter().map(at).collect()
}
