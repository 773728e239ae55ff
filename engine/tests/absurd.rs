//! Lengths that nobody has: an error with numbers, and little memory for the plan.
#![allow(unsafe_code, reason = "counts allocated bytes")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{hva, ram, range};
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::error::{ErrorKind, Op};
use vfio_fast_engine::region::{Backing, Region};
use vfio_fast_engine::{Config, Engine, Errno, Error};
use vfio_fast_testing as common;
use vfio_fast_testing::accepting::Accepting;

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

/// Counts the bytes that a thread holds, and the most that it has held.
struct CountingAllocator;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
    static MOST: Cell<i64> = const { Cell::new(0) };
}

/// A plan that grows without bound is not to take the machine's memory: the test is aborted before.
const LIMIT: i64 = 1 << 30;

// SAFETY: every call is passed on to the system's allocator unchanged, or returns no memory.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.set(HELD.get() + layout.size() as i64);
        MOST.set(MOST.get().max(HELD.get()));
        if HELD.get() > LIMIT {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.set(HELD.get() - layout.size() as i64);
        // SAFETY: the caller's obligations are the same.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The bytes that `work` allocates at most.
fn most_bytes(work: impl FnOnce()) -> i64 {
    let before = HELD.get();
    MOST.set(before);
    work();
    MOST.get() - before
}

fn open(sim: SimConfig, config: Config) -> Engine {
    Engine::new(Box::new(Sim::new(sim)), config).unwrap()
}

/// A region of that many bytes at the beginning of both address spaces.
fn region(bytes: u64) -> Region {
    Region { hva: hva(0x1000), backing: Backing(1), ..ram(0, bytes) }
}

#[test]
fn an_absurd_length_is_an_error_with_numbers() {
    for rules in [Rules::Type1, Rules::Iommufd] {
        for (bytes, join) in [(1 << 62, false), (1 << 62, true), (u64::MAX - 0xffff, true)] {
            let engine = open(
                SimConfig { rules, iova_ranges: vec![range(0, 1 << 39)], ..SimConfig::default() },
                Config { entry_size: 2 * MIB, ..Config::default() },
            );
            let mut refused = None;
            let most = most_bytes(|| refused = engine.map_region(Region { join, ..region(bytes) }).err());
            let error: Error = refused.expect("an error");
            assert_eq!((error.op, error.errno), (Op::Check, Errno::EINVAL), "{error}");
            assert_eq!(error.kind, ErrorKind::OutsideIova { valid: vec![range(0, 1 << 39)] });
            assert!(error.to_string().contains("39-bit"), "{error}");
            assert!(most < 200 << 20, "{rules:?}: {most} bytes for a plan");
        }
    }
}

#[test]
fn a_large_guest_in_small_entries_takes_little_memory_to_plan() {
    // 64 TiB in 2 MiB are 32 million entries. A container of type1 holds 65,535, and each takes about 100 bytes here.
    let config = || Config { entry_size: 2 * MIB, ..Config::default() };
    let type1 = open(SimConfig::default(), config());
    let most = most_bytes(|| type1.map_region(region(64 * TIB)).unwrap());
    assert_eq!(type1.stats().entries, 32 << 10);
    assert!(most < 64 << 20, "{most} bytes");
    // With room for all of them, a commit has a million at most. This kernel allows no memory to be locked, so that the
    // plan is made and not executed.
    let roomy = Engine::new(Box::<Accepting>::default(), config()).unwrap();
    let mut refused = None;
    let most = most_bytes(|| refused = roomy.map_region(ram(TIB, TIB << 10)).err());
    assert!(matches!(refused, Some(Error { kind: ErrorKind::Memlock { .. }, .. })), "{refused:?}");
    assert!(most < 200 << 20, "{most} bytes");
}

/// One entry is planned as one, however many the grid would have there.
#[test]
fn an_absurd_exact_region_is_planned_at_once() {
    for rules in [Rules::Type1, Rules::Iommufd] {
        let engine = open(
            SimConfig { rules, ..SimConfig::default() },
            Config { entry_size: 2 * MIB, ..Config::default() },
        );
        let exact = Region { exact: true, ..region(1 << 63) };
        engine.map_region(exact).unwrap();
        assert_eq!(engine.entries().len(), 1);
        assert_eq!(engine.unmap(exact.range).unwrap(), 1 << 63);
    }
}
