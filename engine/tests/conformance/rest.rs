//! What a device can access while a part of a region is unmapped, by the DMA of an `edu` between and during the calls.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::Memory;
use super::cases::PAGE;
use super::common::hooked::{Hooked, Hooks};
use super::edu::Edu;
use super::kernel::{self, Driver};
use super::run::Hva;
use vfio_fast_engine::addr::{Iova, IovaRange};
use vfio_fast_engine::backend::{Backend, Mapping};
use vfio_fast_engine::error::KernelResult;
use vfio_fast_engine::object::Object;
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Engine};

/// The IOVA of the first page. The judge of kernel logs knows it (`images/e2e/src/splat.rs`): faults here are wanted.
const START: u64 = 0x5a00_0000;
/// The region that is unmapped in part, the one after it, and an exact one, in pages: first page, length, whether exact.
const REGIONS: [(u64, u64, bool); 3] = [(0, 8, false), (8, 4, false), (12, 4, true)];
/// The pages that are unmapped, in the middle of the first region.
const PART: (u64, u64) = (2, 2);
/// Pages that the device accesses: around the part, in it, and in the other regions.
const PROBES: [u64; 5] = [0, 2, 6, 9, 13];
/// Those of the rest, and those that the unmap does not concern.
const REST: [u64; 2] = [0, 6];
const OTHERS: [u64; 2] = [9, 13];

fn pages(first: u64, count: u64) -> IovaRange {
    IovaRange::new(Iova(START + first * PAGE), count * PAGE).unwrap()
}

/// The device, the memory that it writes to, and what it could access after each call.
struct Probe {
    edu: Edu,
    memory: Memory,
    /// Each call, and the pages of [`PROBES`] that the device reached after it.
    seen: Vec<(String, Vec<u64>)>,
}

impl Probe {
    /// Lets the device write to a page, and returns whether it did.
    fn reaches(&self, page: u64) -> bool {
        let address = self.memory.address(Hva::Writable(page * PAGE));
        self.edu.reaches(START + page * PAGE, address)
    }

    fn after(&mut self, call: String) {
        let reached = PROBES.into_iter().filter(|page| self.reaches(*page)).collect();
        self.seen.push((call, reached));
    }
}

/// After each call, the device tries every page.
struct Watched {
    probe: Arc<Mutex<Probe>>,
    watching: Arc<AtomicBool>,
}

impl Watched {
    fn after(&self, what: &str, range: IovaRange) {
        if self.watching.load(Ordering::Relaxed) {
            let (first, count) = ((range.start() - START) / PAGE, range.length() / PAGE);
            lock(&self.probe).after(format!("{what} {first}+{count}"));
        }
    }
}

impl Hooks for Watched {
    fn map(&self, kernel: &dyn Backend, mapping: &Mapping, object: Option<Object<'_>>) -> KernelResult<()> {
        let answer = kernel.map(mapping, object);
        self.after("map", mapping.range);
        answer
    }

    fn unmap(&self, kernel: &dyn Backend, range: IovaRange) -> KernelResult<u64> {
        let answer = kernel.unmap(range);
        self.after("unmap", range);
        answer
    }
}

fn lock(probe: &Mutex<Probe>) -> MutexGuard<'_, Probe> {
    probe.lock().unwrap()
}

/// Unmaps a part of a region: first with the device looking after each call, then with DMA the whole time.
pub fn only_what_is_cut_is_out_of_reach(driver: Driver) {
    kernel::with_edu(driver, |kernel, edu, memory| {
        let probe = Arc::new(Mutex::new(Probe { edu, memory, seen: Vec::new() }));
        let watching = Arc::<AtomicBool>::default();
        let hooks = Watched { probe: probe.clone(), watching: watching.clone() };
        let backend = Hooked { kernel, hooks };
        let config = Config { huge_pages: false, threads: 1, ..Config::default() };
        let engine = Engine::new(Box::new(backend), config).unwrap();
        let region = |first: u64, count: u64, exact: bool| Region {
            range: pages(first, count),
            hva: memory.host(Hva::Writable(first * PAGE)),
            perm: Perm::ReadWrite,
            kind: Kind::Ram,
            backing: Backing(1),
            join: false,
            exact,
        };
        engine.begin().unwrap();
        for (first, count, exact) in REGIONS {
            engine.map_region(region(first, count, exact)).unwrap();
        }
        engine.commit().unwrap();
        lock(&probe).after("mapped".to_owned());

        watching.store(true, Ordering::Relaxed);
        let part = pages(PART.0, PART.1);
        engine.unmap(part).unwrap();
        watching.store(false, Ordering::Relaxed);
        let seen = std::mem::take(&mut lock(&probe).seen);
        let expected = [
            ("mapped", &PROBES[..]),
            ("unmap 0+8", &OTHERS),
            ("map 0+2", &[0, 9, 13]),
            ("map 4+4", &[0, 6, 9, 13]),
        ];
        let expected = expected.map(|(call, reached)| (call.to_owned(), reached.to_vec()));
        assert_eq!(seen, expected);

        during_many_unmaps(&engine, &probe, || region(PART.0, PART.1, false));
        engine.close().unwrap();
        let mut probe = lock(&probe);
        probe.after("closed".to_owned());
        assert_eq!(probe.seen, [("closed".to_owned(), vec![])]);
    });
}

/// Maps the region again as one entry and unmaps the part of it, again and again. Meanwhile the device writes to other
/// regions, which it always reaches, and to the rest, which it reaches between the calls.
fn during_many_unmaps(engine: &Engine, probe: &Mutex<Probe>, part: impl Fn() -> Region) {
    const WRITES: usize = 24;
    let whole = Region { range: pages(0, 8), hva: lock(probe).memory.host(Hva::Writable(0)), ..part() };
    let done = AtomicBool::new(false);
    let (others, rest, rounds) = std::thread::scope(|scope| {
        let device = scope.spawn(|| {
            let (mut others, mut rest) = (0, 0);
            for n in 0..WRITES {
                let probe = lock(probe);
                others += usize::from(probe.reaches(OTHERS[n % OTHERS.len()]));
                rest += usize::from(probe.reaches(REST[n % REST.len()]));
            }
            done.store(true, Ordering::Relaxed);
            (others, rest)
        });
        let mut rounds = 0u64;
        while !done.load(Ordering::Relaxed) {
            engine.unmap(whole.range).unwrap();
            engine.map_region(whole).unwrap();
            assert_eq!(engine.unmap(part().range).unwrap(), 2 * PAGE);
            rounds += 1;
        }
        let (others, rest) = device.join().unwrap();
        (others, rest, rounds)
    });
    println!("{rounds} unmaps; of {WRITES} writes each, {others} reached other regions and {rest} the rest");
    assert_eq!(others, WRITES, "DMA to other regions was disturbed");
    let probe = lock(probe);
    assert!(REST.into_iter().all(|page| probe.reaches(page)), "the rest is mapped again");
}
