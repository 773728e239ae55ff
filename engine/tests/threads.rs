//! Concurrent threads. `cargo xtask test` runs these and all other tests that start threads under ThreadSanitizer as
//! well.

#![allow(unsafe_code, reason = "a data race is planted, for ThreadSanitizer to find")]

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use vfio_fast_testing as common;

use common::hooked::{Hooked, Hooks};
use common::memory::{RealMemory, ZeroPages, resident, time_data};
use common::{ENTRY, THREADS, UNIT, UNITS, assert_table, callers, engine_with, hva, hva_of, keeping, range};
use vfio_fast_engine::addr::Iova;
use vfio_fast_engine::backend::sim::{Call, Rules, Sim, SimConfig};
use vfio_fast_engine::backend::{Backend, Mapping, PopulatePolicy};
use vfio_fast_engine::error::{ErrorKind, KernelResult};
use vfio_fast_engine::object::Object;
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, DiscardMode, Engine, Errno, discard_range};

const ROUNDS: u64 = 12;
const COMMITS: usize = 40;

#[test]
fn callers_with_ranges_of_their_own_never_see_each_other() {
    let memory = RealMemory::new();
    for rules in [Rules::Type1, Rules::Iommufd] {
        for populate in [PopulatePolicy::Never, PopulatePolicy::Upfront, PopulatePolicy::Overlapped] {
            for threads in THREADS {
                memory.cool();
                let (engine, sim) = engine_with(threads, SimConfig { populate, ..keeping(rules) });
                let left = callers::keep_to_their_own(&engine, ROUNDS);
                left.assert_mapped(&sim.mappings());
                assert_table(&engine, &sim);
                engine.close().unwrap();
                assert!(sim.mappings().is_empty());
            }
        }
    }
}

/// While a thread has a transaction open, another thread changes nothing, and nothing of its becomes a part of the
/// transaction. It still sees everything.
#[test]
fn a_transaction_belongs_to_the_thread_that_began_it() {
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (engine, sim) = engine_with(1, keeping(rules));
        let (first, second, third) = (exact(0, 1, 0, 4), exact(1 << 30, 1, 8, 4), exact(2 << 30, 1, 16, 4));
        engine.map_region(first).unwrap();
        engine.begin().unwrap();
        engine.map_region(second).unwrap();
        let calls = sim.calls();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let page = [(Iova(3 << 30), third.hva)];
                let mut bitmap = [0; 4];
                // SAFETY: the call is refused.
                let memory = unsafe { discard_range(third.hva.raw(), UNIT, DiscardMode::Private) }.unwrap();
                for (call, answer) in [
                    ("map_region", engine.map_region(third)),
                    ("map_pages", engine.map_pages(page, Perm::Read, Backing(1), false)),
                    ("unmap", engine.unmap(first.range).map(drop)),
                    ("unmap_pages", engine.unmap_pages([Iova(0)]).map(drop)),
                    ("unmap_dirty", engine.unmap_dirty(first.range, &mut bitmap).map(drop)),
                    ("remap", engine.remap(first.hva, UNIT).map(drop)),
                    ("discard", engine.discard(&memory)),
                    ("check", engine.check_limits()),
                    ("begin", engine.begin()),
                    ("commit", engine.commit().map(drop)),
                    ("abort", engine.abort()),
                ] {
                    let error = answer.expect_err(call);
                    assert_eq!((error.errno, error.kind), (Errno::EBUSY, ErrorKind::OtherThread), "{call}");
                }
                assert!(engine.info().in_transaction);
                assert_eq!((engine.regions(), engine.entries().len()), (vec![first, second], 1));
                if rules == Rules::Type1 {
                    engine.track_dirty(true).unwrap();
                    engine.read_dirty(first.range, &mut bitmap).unwrap();
                    engine.track_dirty(false).unwrap();
                }
            });
        });
        assert!(!sim.calls()[calls.len()..].iter().any(|call| !matches!(call, Call::ReadDirty(_))));
        assert_eq!(engine.regions(), [first, second]);
        engine.commit().unwrap();
        assert_table(&engine, &sim);
        // Now another thread may, and it may close the engine whoever has a transaction open.
        std::thread::scope(|scope| scope.spawn(|| engine.map_region(third)).join().unwrap()).unwrap();
        engine.begin().unwrap();
        std::thread::spawn(move || engine.close()).join().unwrap().unwrap();
        assert!(sim.mappings().is_empty());
    }
}

/// RAM in one exact entry.
fn exact(start: u64, object: u64, offset: u64, units: u64) -> Region {
    let (range, hva) = (range(start, units * UNIT), hva(hva_of(object, offset)));
    Region {
        range,
        hva,
        perm: Perm::ReadWrite,
        kind: Kind::Ram,
        backing: Backing(object),
        join: false,
        exact: true,
    }
}

/// Small entries, and a large one with memory that begins shortly before a chunk boundary of populate: the thread
/// that maps it populates the small chunk, and waits for another thread to populate the large one.
fn small_and_large() -> impl Iterator<Item = Region> {
    let small = (0..16).map(move |number| exact(number * 2 * UNIT, 2, number * 2, 1));
    small.chain([exact(1 << 32, 1, UNITS - 1, UNITS)])
}

/// Checks at each map call that the memory is present.
struct Checking {
    missing_bytes: Arc<AtomicU64>,
}

impl Hooks for Checking {
    fn map(&self, kernel: &dyn Backend, mapping: &Mapping, object: Option<Object<'_>>) -> KernelResult<()> {
        let length = mapping.range.length();
        let missing = length - resident(mapping.hva.raw(), length);
        self.missing_bytes.fetch_add(missing, Ordering::Relaxed);
        kernel.map(mapping, object)
    }
}

#[test]
fn no_entry_is_mapped_before_its_memory_is_present() {
    let memory = RealMemory::new();
    memory.small_pages();
    for threads in THREADS {
        let missing_bytes = Arc::<AtomicU64>::default();
        let sim = Sim::new(SimConfig { populate: PopulatePolicy::Overlapped, ..keeping(Rules::Iommufd) });
        let hooks = Checking { missing_bytes: missing_bytes.clone() };
        let backend = Box::new(Hooked { kernel: Box::new(sim), hooks });
        let config = Config {
            entry_size: ENTRY,
            huge_pages: false,
            threads,
            oversubscribe: true,
            ..Config::default()
        };
        let engine = Engine::new(backend, config).unwrap();
        for _ in 0..COMMITS {
            memory.cool();
            engine.begin().unwrap();
            for region in small_and_large() {
                engine.map_region(region).unwrap();
            }
            engine.commit().unwrap();
            for region in small_and_large() {
                engine.unmap(region.range).unwrap();
            }
        }
        assert_eq!(engine.stats().map_calls, COMMITS as u64 * small_and_large().count() as u64);
        assert_eq!(missing_bytes.load(Ordering::Relaxed), 0, "mapped too early with {threads} threads");
    }
}

/// A device region declared as RAM is refused, and the RAM next to it is mapped.
#[test]
fn device_memory_declared_as_ram_fails_no_commit() {
    let memory = RealMemory::new();
    let _slow = ZeroPages::new();
    let (start, bytes) = time_data();
    let (range, hva, perm, backing) = (range(1 << 40, bytes), hva(start), Perm::Read, Backing(3));
    let device = Region { range, hva, perm, kind: Kind::Ram, backing, join: false, exact: true };
    // Each has two chunks of populate.
    let ram = [exact(1 << 32, 1, 0, 2 * UNITS), exact(2 << 32, 2, 0, 2 * UNITS)];
    let config = SimConfig {
        populate: PopulatePolicy::Overlapped,
        unmappable: vec![(start, start + bytes - 1)],
        ..keeping(Rules::Iommufd)
    };
    for threads in THREADS {
        let (engine, sim) = engine_with(threads, config.clone());
        for commit in 0..COMMITS {
            memory.cool();
            engine.begin().unwrap();
            for region in [ram[0], ram[1], device] {
                engine.map_region(region).unwrap();
            }
            let outcome =
                engine.commit().unwrap_or_else(|error| panic!("{threads} threads, {commit}: {error}"));
            assert_eq!((outcome.executed.map_bytes, outcome.executed.refusals.len()), (4 * UNITS * UNIT, 1));
            assert_table(&engine, &sim);
            for region in [ram[0], ram[1], device] {
                engine.unmap(region.range).unwrap();
            }
        }
    }
}

/// Data without synchronisation.
struct Unguarded(UnsafeCell<u64>);

// SAFETY: this is unsound on purpose: ThreadSanitizer must report it.
unsafe impl Sync for Unguarded {}

#[test]
#[ignore = "a data race, which ThreadSanitizer has to report"]
fn a_planted_race_is_reported() {
    let sum = Unguarded(UnsafeCell::new(0));
    let (sum, there, written) = (&sum, AtomicUsize::new(0), AtomicUsize::new(0));
    // A relaxed operation makes a thread wait and orders nothing.
    let wait_for = |counter: &AtomicUsize, value| {
        while counter.load(Ordering::Relaxed) < value {
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        for turn in 0..2 {
            let (wait_for, there, written) = (&wait_for, &there, &written);
            scope.spawn(move || {
                // Neither writes before both run: the end of one thread and the start of the next are ordered.
                there.fetch_add(1, Ordering::Relaxed);
                wait_for(there, 2);
                // ThreadSanitizer can miss accesses at the same moment, so they take turns.
                wait_for(written, turn);
                // SAFETY: this is unsound on purpose: nothing orders it against the write of the other thread.
                unsafe { *sum.0.get() += 1 };
                written.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
}
