//! Measures the cost of a transaction before the kernel is called: planning, and commits with few or no calls.
#![allow(unsafe_code, reason = "naming a host address is unsafe; see `hva`")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use vfio_fast_engine::addr::{HostVa, Iova, IovaRange};
use vfio_fast_engine::backend::Backend;
use vfio_fast_engine::backend::sim::{Sim, SimConfig};
use vfio_fast_engine::reconcile::grid::Grid;
use vfio_fast_engine::reconcile::plan::{Gaps, Plan, plan};
use vfio_fast_engine::reconcile::runs::runs;
use vfio_fast_engine::reconcile::table::MapTable;
use vfio_fast_engine::reconcile::wanted::WantedSet;
use vfio_fast_engine::region::{Backing, Kind, Mapping, Perm, Region};
use vfio_fast_engine::{Config, Engine};
use vfio_fast_testing::accepting::Accepting;

/// The default maximum number of entries of a type1 container (`dma_entry_limit`).
const ENTRIES: u64 = 65_535;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

fn hva(address: u64) -> HostVa {
    // SAFETY: the model maps nothing and populate is off, so memory at this address is never accessed.
    unsafe { vfio_fast_engine::host_va(address) }
}

/// RAM at an IOVA. All of the guest's memory is one object, which starts at host address 16 TiB.
fn ram(start: u64, end: u64, perm: Perm) -> Region {
    let range = IovaRange::new(Iova(start), end - start).expect("not empty");
    Region {
        range,
        hva: hva(16 * TIB + start),
        perm,
        kind: Kind::Ram,
        backing: Backing(1),
        join: true,
        exact: false,
    }
}

/// Small objects that cannot be joined: as many entries as a container can hold.
fn crowd() -> impl Iterator<Item = Region> {
    (0..ENTRIES).map(member)
}

fn member(number: u64) -> Region {
    let start = 4 * GIB + number * 2 * MIB;
    Region { backing: Backing(number + 1), ..ram(start, start + 2 * MIB, Perm::ReadWrite) }
}

/// A q35 guest of 4 TiB. Its firmware opens and closes the BIOS shadow below 1 MiB; for that, QEMU removes and adds
/// the whole section that contains the shadow, up to the PCI hole.
const RAM: [(u64, u64); 3] = [(0, 0xa_0000), (0xc_0000, 0xe_0000), (4 * GIB, 4 * TIB + 2 * GIB)];
const SHADOW: u64 = 0xe_0000;
const HOLE: u64 = 2 * GIB;

/// The sections from the shadow to the hole: closed (read-only) or open.
fn sections(open: bool) -> Vec<Region> {
    if open {
        return vec![ram(SHADOW, HOLE, Perm::ReadWrite)];
    }
    vec![ram(SHADOW, MIB, Perm::Read), ram(MIB, HOLE, Perm::ReadWrite)]
}

fn guest() -> impl Iterator<Item = Region> {
    RAM.into_iter().map(|(start, end)| ram(start, end, Perm::ReadWrite))
}

fn shadow() -> IovaRange {
    IovaRange::new(Iova(SHADOW), HOLE - SHADOW).expect("not empty")
}

fn engine(regions: impl Iterator<Item = Region>) -> Engine {
    let engine = Engine::new(Box::new(Sim::new(SimConfig::default())), Config::default()).expect("opens");
    engine.begin().expect("healthy");
    for region in regions {
        engine.map_region(region).expect("fits");
    }
    engine.commit().expect("commits");
    engine
}

fn wanted(regions: impl Iterator<Item = Region>) -> WantedSet {
    let mut wanted = WantedSet::default();
    for region in regions {
        wanted.insert(region).expect("nothing overlaps");
    }
    wanted
}

/// The table after a commit of all wanted regions.
fn table(wanted: &WantedSet) -> MapTable {
    let mut table = MapTable::default();
    for entry in planned(wanted, &MapTable::default()).maps {
        table.insert(entry);
    }
    table
}

fn planned(wanted: &WantedSet, table: &MapTable) -> Plan {
    let grid = Grid::new(Grid::DEFAULT_ENTRY).expect("the default");
    plan(wanted, table, wanted.touched(), &grid, Gaps::All, Some(ENTRIES)).expect("fits")
}

fn commits(c: &mut Criterion) {
    let crowded = engine(crowd());
    assert_eq!(crowded.stats().entries, ENTRIES);
    c.bench_function("commit, nothing touched, 65535 entries", |b| {
        b.iter(|| {
            crowded.begin().expect("healthy");
            crowded.commit().expect("commits")
        });
    });
    c.bench_function("commit, one region told again, 65535 entries", |b| {
        let region = member(ENTRIES / 2);
        b.iter(|| {
            crowded.begin().expect("healthy");
            crowded.unmap(region.range).expect("a whole region");
            crowded.map_region(region).expect("free");
            let outcome = crowded.commit().expect("commits");
            assert_eq!((outcome.executed.map_calls, outcome.executed.unmap_calls), (0, 0));
        });
    });
    let steady = engine(guest().chain(sections(false)));
    c.bench_function("commit, sections told again, 4 TiB", |b| {
        b.iter(|| {
            steady.begin().expect("healthy");
            steady.unmap(shadow()).expect("whole regions");
            for region in sections(false) {
                steady.map_region(region).expect("free");
            }
            let outcome = steady.commit().expect("commits");
            assert_eq!((outcome.executed.map_calls, outcome.executed.unmap_calls), (0, 0));
        });
    });
    let firmware = engine(guest().chain(sections(false)));
    let mut open = false;
    // Includes the model's own calls, each of which copies its configuration.
    c.bench_function("commit, PAM toggle, 4 TiB, model's calls included", |b| {
        b.iter(|| {
            open = !open;
            firmware.begin().expect("healthy");
            firmware.unmap(shadow()).expect("whole regions");
            for region in sections(open) {
                firmware.map_region(region).expect("free");
            }
            firmware.commit().expect("commits")
        });
    });
}

fn plans(c: &mut Criterion) {
    // Recording a change in a transaction counts as planning too.
    let closed = || {
        let mut closed = wanted(guest().chain(sections(false)));
        closed.commit();
        closed
    };
    let held = table(&wanted(guest().chain(sections(false))));
    let toggle = |mut wanted: WantedSet| {
        wanted.remove(shadow()).expect("whole regions");
        for region in sections(true) {
            wanted.insert(region).expect("free");
        }
        let plan = planned(black_box(&wanted), black_box(&held));
        (plan, wanted)
    };
    let (plan, _) = toggle(closed());
    assert_eq!((plan.unmaps.len(), plan.maps.len(), plan.kept_entries), (1, 1, 2), "{plan:?}");
    c.bench_function("plan, PAM toggle, 4 TiB", |b| b.iter_batched(closed, toggle, BatchSize::SmallInput));
    let (all, empty) = (wanted(crowd()), MapTable::default());
    assert_eq!(planned(&all, &empty).maps.len() as u64, ENTRIES);
    c.bench_function("plan, 65535 entries at once", |b| {
        b.iter(|| planned(black_box(&all), black_box(&empty)));
    });
}

const PAGE: u64 = 4096;

/// An array: its name, its number of runs, and its pages.
type Array = (&'static str, u64, Vec<(Iova, HostVa)>);

/// Pages as a guest's driver may pass them: contiguous, scattered, and in runs of eight.
fn arrays_of(count: u64) -> [Array; 3] {
    [("in a row", count), ("scattered", 1), ("in runs of 8", 8)].map(|(name, run)| {
        // Skip as many pages after each run as the run has.
        let place = |n: u64| (n + n / run * run) * PAGE;
        (name, count / run, (0..count).map(|n| (Iova(place(n)), hva(16 * TIB + place(n)))).collect())
    })
}

/// Maps and then unmaps an array, in calls of `pages` pages each.
fn toggle(engine: &Engine, array: &[(Iova, HostVa)], pages: usize) {
    for part in array.chunks(pages) {
        engine.map_pages(part.iter().copied(), Perm::ReadWrite, Backing::UNKNOWN, false).expect("free");
    }
    for part in array.chunks(pages) {
        engine.unmap_pages(part.iter().map(|(iova, _)| *iova)).expect("no exact region");
    }
}

/// Maps and unmaps an array in one call, and page by page.
fn arrays(c: &mut Criterion) {
    const PAGES: u64 = 512;
    let engine = Engine::new(Box::<Accepting>::default(), Config::default()).expect("opens");
    for (name, runs, pages) in arrays_of(PAGES) {
        let before = engine.stats();
        toggle(&engine, &pages, pages.len());
        assert_eq!(engine.stats().map_calls - before.map_calls, runs);
        for (how, size) in [("", pages.len()), (", page by page", 1)] {
            c.bench_function(&format!("array of 512 pages {name}{how}"), |b| {
                b.iter_custom(|rounds| median(rounds, || toggle(&engine, black_box(&pages), size)));
            });
        }
    }
}

/// Measures grouping without mapping.
fn groups(c: &mut Criterion) {
    const PAGES: u64 = 1_000_000;
    for (name, expected, pages) in arrays_of(PAGES) {
        assert_eq!(runs(pages.iter().copied(), PAGE).count() as u64, expected);
        c.bench_function(&format!("runs of 1,000,000 pages {name}"), |b| {
            b.iter(|| runs(black_box(&pages).iter().copied(), PAGE).map(|run| run.pages).sum::<u64>());
        });
    }
}

/// An exact page, as a vIOMMU maps it; every other page is left free.
fn single(number: u64) -> Region {
    let start = 4 * GIB + number * 2 * PAGE;
    Region { exact: true, backing: Backing::UNKNOWN, ..ram(start, start + PAGE, Perm::ReadWrite) }
}

fn singles_engine(regions: u64) -> Engine {
    let engine = Engine::new(Box::<Accepting>::default(), Config::default()).expect("opens");
    for number in 0..regions {
        engine.map_region(single(number)).expect("free");
    }
    engine
}

/// Regions that are mapped, and then unmapped, before one of them is mapped again, as a driver takes IOVAs.
const RING: u64 = 64;

/// The time for `rounds` calls, where `ring` returns the time for [`RING`] of them.
fn timed(rounds: u64, ring: impl FnMut() -> Duration) -> Duration {
    median_of(rounds.div_ceil(RING), ring).mul_f64(rounds as f64 / RING as f64)
}

/// The time for `rounds` calls of `work`.
fn median(rounds: u64, mut work: impl FnMut()) -> Duration {
    let one = || {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    median_of(rounds, one).mul_f64(rounds as f64)
}

/// The median of `count` times. Each is short, so that other processes run between them and not within most of them.
fn median_of(count: u64, mut time: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<Duration> = (0..count).map(|_| time()).collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// The time that [`RING`] calls of `map`, or of `unmap` after them, take.
fn ring(maps: bool, map: impl FnMut(u64), unmap: impl FnMut(u64)) -> Duration {
    let start = Instant::now();
    (0..RING).for_each(map);
    let mapped = Instant::now();
    (0..RING).for_each(unmap);
    if maps { mapped - start } else { mapped.elapsed() }
}

/// Maps, or unmaps, exact regions behind the `regions` that the engine holds.
fn engine_ring(engine: &Engine, regions: u64, maps: bool) -> Duration {
    let map = |number| engine.map_region(single(regions + number)).expect("free");
    let unmap = |number| {
        assert_eq!(engine.unmap(single(regions + number).range).expect("whole"), PAGE);
    };
    ring(maps, map, unmap)
}

/// One exact region outside a transaction. Subtract the rows of the model.
fn singles(c: &mut Criterion) {
    let model: &dyn Backend = &Accepting::default();
    let model_ring = |maps| {
        let map = |number| {
            let Region { range, hva, perm, .. } = single(number);
            black_box(model).map(&Mapping { range, hva, perm }, None).expect("accepted");
        };
        let unmap = |number| {
            assert_eq!(black_box(model).unmap(single(number).range).expect("accepted"), PAGE);
        };
        ring(maps, map, unmap)
    };
    for (name, maps) in [("map", true), ("unmap", false)] {
        c.bench_function(&format!("one exact {name}, the model alone"), |b| {
            b.iter_custom(|rounds| timed(rounds, || model_ring(maps)));
        });
    }
    for regions in [1, 1_000, 1_000_000] {
        let engine = singles_engine(regions);
        for (name, maps) in [("map", true), ("unmap", false)] {
            c.bench_function(&format!("one exact {name}, {regions} regions"), |b| {
                b.iter_custom(|rounds| timed(rounds, || engine_ring(&engine, regions, maps)));
            });
        }
    }
    let tracked = singles_engine(100_000);
    tracked.track_dirty(true).expect("tracks");
    // Reads a part of an exact region of two pages: the report for the other page is kept.
    let two = Region { range: IovaRange::new(Iova(GIB), 2 * PAGE).expect("not empty"), ..single(0) };
    tracked.map_region(two).expect("free");
    for state in ["no dirty page", "a dirty page"] {
        if state == "a dirty page" {
            let first = IovaRange::new(Iova(GIB), PAGE).expect("not empty");
            tracked.read_dirty(first, &mut [0]).expect("tracks");
        }
        for (name, maps) in [("map", true), ("unmap", false)] {
            c.bench_function(&format!("one exact {name}, 100000 regions, {state} pending"), |b| {
                b.iter_custom(|rounds| timed(rounds, || engine_ring(&tracked, 100_000, maps)));
            });
        }
    }
}

/// Many exact regions in a row, unmapped by one call.
fn at_once(c: &mut Criterion) {
    const REGIONS: u64 = 65_536;
    let engine = Engine::new(Box::<Accepting>::default(), Config::default()).expect("opens");
    let all = IovaRange::new(Iova(4 * GIB), REGIONS * PAGE).expect("not empty");
    let page = |number: u64| {
        let range = IovaRange::new(Iova(4 * GIB + number * PAGE), PAGE).expect("not empty");
        Region { range, ..single(number) }
    };
    let one = || {
        (0..REGIONS).for_each(|number| engine.map_region(page(number)).expect("free"));
        let start = Instant::now();
        assert_eq!(engine.unmap(all).expect("whole"), REGIONS * PAGE);
        start.elapsed()
    };
    c.bench_function("65536 exact regions, unmapped at once", |b| {
        b.iter_custom(|rounds| median_of(rounds, one).mul_f64(rounds as f64));
    });
}

/// One page told again of an entry that many regions share.
fn shared(c: &mut Criterion) {
    let page = |number: u64| ram(4 * GIB + number * PAGE, 4 * GIB + (number + 1) * PAGE, Perm::ReadWrite);
    for regions in [1, 262_144] {
        let engine = engine((0..regions).map(page));
        assert_eq!(engine.stats().entries, 1);
        let again = page(regions / 2);
        let commit = |_| {
            engine.begin().expect("healthy");
            engine.unmap(again.range).expect("a whole region");
            engine.map_region(again).expect("free");
            assert_eq!(engine.commit().expect("commits").kept_entries, 1);
        };
        c.bench_function(&format!("commit, one page told again of an entry of {regions} regions"), |b| {
            b.iter_custom(|rounds| timed(rounds, || ring(true, commit, drop)));
        });
    }
}

criterion_group!(pure, commits, plans, groups, arrays, singles, at_once, shared);
criterion_main!(pure);
