//! Calls that other threads make while a commit maps memory, which can take minutes.
#![allow(unsafe_code, reason = "naming memory to discard is unsafe")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::thread::scope;

use vfio_fast_testing as common;

use common::hooked::{Hooked, Then, Waiting};
use common::{assert_table, hva, ram, range};
use vfio_fast_engine::addr::{Iova, IovaRange};
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::region::{Backing, Region};
use vfio_fast_engine::{Config, DiscardMode, Engine, Errno, Result, discard_range};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// Where the map call waits.
const SLOW: u64 = 1 << 32;

/// An engine, its container, and both ends of its slow map call.
struct Bench {
    engine: Engine,
    sim: Sim,
    began: Receiver<IovaRange>,
    go_on: Sender<Then>,
}

fn bench(config: SimConfig) -> Bench {
    let sim = Sim::new(config);
    let (hooks, began, go_on) = Waiting::new(|mapping| mapping.range.start() == SLOW);
    let backend = Hooked { kernel: Box::new(sim.clone()), hooks };
    let config = Config { threads: 1, ..Config::default() };
    let engine = Engine::new(Box::new(backend), config).unwrap();
    Bench { engine, sim, began, go_on }
}

fn rules() -> [SimConfig; 2] {
    [Rules::Type1, Rules::Iommufd].map(|rules| SimConfig { rules, ..SimConfig::default() })
}

/// Memory that takes long to map: three entries of which the second one waits.
fn large() -> Region {
    Region { hva: hva(1 << 46), backing: Backing(1), ..ram(SLOW - (1 << 30), 3 << 30) }
}

/// An entry of a vIOMMU.
fn small(start: u64) -> Region {
    Region { hva: hva(1 << 45), backing: Backing::UNKNOWN, exact: true, ..ram(start, PAGE) }
}

impl Bench {
    /// Maps [`large`] on another thread, and runs `meanwhile` while its map call waits. Returns the result of the map.
    fn beside(&self, then: Then, meanwhile: impl FnOnce()) -> Result<()> {
        scope(|scope| {
            let engine = &self.engine;
            let committing = scope.spawn(move || engine.map_region(large()));
            self.began.recv().unwrap();
            meanwhile();
            self.go_on.send(then).unwrap();
            committing.join().unwrap()
        })
    }

    fn assert_mapped(&self, regions: &[IovaRange]) {
        let wanted: Vec<IovaRange> = self.engine.regions().iter().map(|region| region.range).collect();
        assert_eq!(wanted, regions);
        let bytes: u64 = regions.iter().map(|range| range.length()).sum();
        assert_eq!(self.engine.entries().iter().map(|entry| entry.range.length()).sum::<u64>(), bytes);
        assert_eq!(self.engine.stats().mapped_bytes, bytes);
        assert_table(&self.engine, &self.sim);
    }
}

#[test]
fn entries_elsewhere_are_mapped_and_unmapped_at_once() {
    for config in rules() {
        for then in [Then::Maps, Then::Fails] {
            let bench = bench(config.clone());
            let engine = &bench.engine;
            engine.map_region(small(0)).unwrap();
            let done = bench.beside(then, || {
                engine.map_region(small(8 << 32)).unwrap();
                engine.map_region(small(9 << 32)).unwrap();
                assert_eq!(engine.unmap(small(0).range), Ok(PAGE));
                assert_eq!(engine.unmap(small(9 << 32).range), Ok(PAGE));
                let info = engine.info();
                assert!(!info.poisoned && !info.in_transaction);
                assert_eq!(engine.regions().len(), 2);
                assert!(engine.entries().iter().any(|entry| entry.range == small(8 << 32).range));
            });
            if then == Then::Maps {
                done.unwrap();
                bench.assert_mapped(&[large().range, small(8 << 32).range]);
            } else {
                assert_eq!(done.unwrap_err().errno, Errno::ENOMEM);
                bench.assert_mapped(&[small(8 << 32).range]);
            }
            assert_eq!(engine.stats().commits, 5 + u64::from(then == Then::Maps));
        }
    }
}

/// Runs `call` on a thread of its own while the map call waits. It must not return before that.
fn waits(config: SimConfig, then: Then, call: impl Fn(&Engine) + Sync) -> Bench {
    let bench = bench(config);
    let ended = AtomicBool::new(false);
    scope(|scope| {
        let (engine, ended, call) = (&bench.engine, &ended, &call);
        let committing =
            scope.spawn(move || catch_unwind(AssertUnwindSafe(|| engine.map_region(large()))).is_ok());
        bench.began.recv().unwrap();
        let waiting = scope.spawn(move || {
            call(engine);
            assert!(ended.load(Ordering::SeqCst), "returned while the commit ran");
        });
        // Time to make the mistake. A thread that starts later finds nothing, and fails nothing.
        std::thread::sleep(std::time::Duration::from_millis(20));
        ended.store(true, Ordering::SeqCst);
        bench.go_on.send(then).unwrap();
        assert_eq!(committing.join().unwrap(), then != Then::Panics);
        waiting.join().unwrap();
    });
    bench
}

#[test]
fn what_the_commit_may_change_waits_for_it() {
    for config in rules() {
        for then in [Then::Maps, Then::Fails] {
            let unmapped = waits(config.clone(), then, |engine| {
                let bytes = if then == Then::Maps { large().range.length() } else { 0 };
                assert_eq!(engine.unmap(large().range), Ok(bytes));
            });
            unmapped.assert_mapped(&[]);
            let inside = small(SLOW + 2 * PAGE);
            let mapped = waits(config.clone(), then, |engine| match engine.map_region(inside) {
                Ok(()) => assert_eq!(then, Then::Fails),
                Err(error) => assert_eq!((error.errno, then), (Errno::EEXIST, Then::Maps)),
            });
            mapped.assert_mapped(&[if then == Then::Maps { large().range } else { inside.range }]);
        }
    }
}

#[test]
fn what_takes_a_plan_waits() {
    let config = SimConfig::default();
    let other = Region { backing: Backing(2), ..ram(8 << 32, 16 * MIB) };
    let mapped = waits(config.clone(), Then::Maps, |engine| engine.map_region(other).unwrap());
    mapped.assert_mapped(&[large().range, other.range]);
    let committed = waits(config.clone(), Then::Maps, |engine| {
        engine.begin().unwrap();
        engine.map_region(other).unwrap();
        engine.commit().unwrap();
    });
    committed.assert_mapped(&[large().range, other.range]);
    waits(config.clone(), Then::Maps, |engine| {
        assert_eq!(engine.unmap_pages([Iova(other.range.start())]), Ok(0))
    });
    waits(config.clone(), Then::Maps, |engine| engine.track_dirty(true).unwrap());
    waits(config.clone(), Then::Maps, |engine| assert!(engine.remap(large().hva, PAGE).unwrap() > 0));
}

/// The range that a transaction unmaps can cover gaps. Its unmap calls cover those between two entries, and a failed
/// commit unmaps the whole range once more.
#[test]
fn a_gap_in_what_is_unmapped_waits() {
    let gaps = [small(2 * PAGE), small(MIB / 2)];
    for (config, gap) in rules().into_iter().flat_map(|config| gaps.map(|gap| (config.clone(), gap))) {
        let bench = bench(config);
        let engine = &bench.engine;
        for start in [0, 4 * PAGE] {
            engine.map_region(small(start)).unwrap();
        }
        let ended = AtomicBool::new(false);
        scope(|scope| {
            let committing = scope.spawn(|| {
                engine.begin().unwrap();
                assert_eq!(engine.unmap(range(0, MIB)), Ok(2 * PAGE));
                engine.map_region(large()).unwrap();
                engine.commit()
            });
            bench.began.recv().unwrap();
            let waiting = scope.spawn(|| {
                engine.map_region(gap).unwrap();
                assert!(ended.load(Ordering::SeqCst), "returned while the commit ran");
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            ended.store(true, Ordering::SeqCst);
            bench.go_on.send(Then::Fails).unwrap();
            assert_eq!(committing.join().unwrap().unwrap_err().errno, Errno::ENOMEM);
            waiting.join().unwrap();
        });
        // The transaction unmapped it all, and its failure maps nothing again.
        bench.assert_mapped(&[gap.range]);
    }
}

#[test]
fn the_entries_of_the_commit_are_reserved() {
    let config = SimConfig { dma_avail: 4, ..SimConfig::default() };
    let bench = bench(config.clone());
    bench.beside(Then::Maps, || bench.engine.map_region(small(8 << 32)).unwrap()).unwrap();
    bench.assert_mapped(&[large().range, small(8 << 32).range]);
    // One entry fewer: the small one waits, and is refused.
    let config = SimConfig { dma_avail: 3, ..config };
    let bench = waits(config, Then::Maps, |engine| {
        assert_eq!(engine.map_region(small(8 << 32)).unwrap_err().errno, Errno::ENOSPC);
    });
    bench.assert_mapped(&[large().range]);
}

#[test]
fn who_waits_for_a_commit_that_panics_is_told() {
    for config in rules() {
        let bench = waits(config, Then::Panics, |engine| {
            assert_eq!(engine.unmap(large().range).unwrap_err().errno, Errno::ENOTRECOVERABLE);
        });
        assert!(bench.engine.info().poisoned);
        bench.engine.close().unwrap();
        assert!(bench.sim.mappings().is_empty());
    }
}

#[test]
fn memory_of_the_commit_is_not_discarded() {
    let Region { range, hva, .. } = large();
    let memory = || {
        // SAFETY: nothing is mapped there, and the engine refuses to discard the memory of a wanted region.
        unsafe { discard_range(hva.raw(), range.length(), DiscardMode::Private) }.unwrap()
    };
    let bench = waits(SimConfig::default(), Then::Maps, |engine| {
        assert_eq!(engine.discard(&memory()).unwrap_err().errno, Errno::EBUSY);
    });
    bench.assert_mapped(&[range]);
}

/// How often the threads of this name have gone to sleep.
fn sleeps_of(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let texts = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
    let own = texts.filter(|text| text.starts_with(&format!("Name:\t{name}\n")));
    let count = |text: String| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse().unwrap()
    };
    own.map(count).sum()
}

/// Each of several calls that wait wakes up when a commit ends; those that have to wait for the next one sleep again.
#[test]
fn calls_that_wait_do_not_wake_each_other() {
    let bench = bench(SimConfig::default());
    scope(|scope| {
        let engine = &bench.engine;
        let first = scope.spawn(|| engine.map_region(large()));
        bench.began.recv().unwrap();
        for _ in 0..3 {
            let remap = move || engine.remap(large().hva, 3 << 30);
            std::thread::Builder::new().name("waits".to_owned()).spawn_scoped(scope, remap).unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        bench.go_on.send(Then::Maps).unwrap();
        first.join().unwrap().unwrap();
        bench.began.recv().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        let before = sleeps_of("waits");
        std::thread::sleep(std::time::Duration::from_millis(200));
        let sleeps = sleeps_of("waits") - before;
        (0..3).for_each(|_| bench.go_on.send(Then::Maps).unwrap());
        assert!(sleeps < 20, "{sleeps} times in 200 ms");
    });
}
