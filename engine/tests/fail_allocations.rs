//! Every allocation of the library fails, one after the other, each in a process of its own; and calls with large inputs
//! have too little memory.
//!
//! Rust ends the process if an allocation fails, and so does GLib in QEMU. What must not happen is anything else: a hang,
//! a panic, or a wrong table. Calls with inputs of any size ask for their memory first: they return ENOMEM, and have
//! changed nothing.
#![no_main]
#![allow(unsafe_code, reason = "fails allocations, and forks")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{c_char, c_int};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::accepting::Accepting;
use common::child::{self, Ended};
use common::{ENTRY, assert_table, hva, ram, range};
use vfio_fast_engine::addr::Iova;
use vfio_fast_engine::backend::PopulatePolicy;
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::error::Result;
use vfio_fast_engine::log::Log;
use vfio_fast_engine::region::{Backing, Perm, Region};
use vfio_fast_engine::{Config, Engine, Errno};
use vfio_fast_testing as common;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// This only ends a process that hangs.
const HANGS_AFTER_S: u32 = 60;
const NEVER: u64 = u64::MAX;

/// Bytes that are allocated, their maximum so far, and what may be allocated.
static HELD: AtomicU64 = AtomicU64::new(0);
static MOST: AtomicU64 = AtomicU64::new(0);
static BUDGET: AtomicU64 = AtomicU64::new(NEVER);
/// Whether allocations are counted, how many there were, and which one fails.
static ARMED: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);
static FAILS: AtomicU64 = AtomicU64::new(NEVER);

struct FailingAllocator;

// SAFETY: every call is passed on to the system's allocator unchanged, or returns no memory.
unsafe impl GlobalAlloc for FailingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = layout.size() as u64;
        let fails = ARMED.load(Ordering::Relaxed)
            && COUNT.fetch_add(1, Ordering::Relaxed) == FAILS.load(Ordering::Relaxed);
        let held = HELD.fetch_add(size, Ordering::Relaxed) + size;
        if fails || held > BUDGET.load(Ordering::Relaxed) {
            HELD.fetch_sub(size, Ordering::Relaxed);
            return std::ptr::null_mut();
        }
        MOST.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's obligations are the same.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: FailingAllocator = FailingAllocator;

/// A call with a large input: an engine before it, and the call.
struct Large {
    name: &'static str,
    engine: fn() -> Engine,
    call: fn(&Engine) -> Result<()>,
}

/// Pages, regions or entries of a large input.
const MANY: u64 = 5000;

fn small_entries() -> Config {
    Config { entry_size: ENTRY, ..Config::default() }
}

fn empty() -> Engine {
    Engine::new(Box::<Accepting>::default(), small_entries()).unwrap()
}

fn with_pages() -> Engine {
    let engine = empty();
    map_pages(&engine).unwrap();
    engine
}

fn tracking() -> Engine {
    let sim = Sim::new(SimConfig { all_dirty: false, ..SimConfig::default() });
    let engine = Engine::new(Box::new(sim), small_entries()).unwrap();
    engine.map_region(Region { exact: true, hva: hva(0x1000), ..ram(0, 16 << 30) }).unwrap();
    engine.track_dirty(true).unwrap();
    engine
}

fn map_pages(engine: &Engine) -> Result<()> {
    let pages = (0..MANY).map(|page| (Iova(2 * page * PAGE), hva((1 << 46) + 2 * page * PAGE)));
    engine.map_pages(pages, Perm::ReadWrite, Backing::UNKNOWN, false)
}

const LARGE: &[Large] = &[
    Large { name: "map an array of pages", engine: empty, call: map_pages },
    Large {
        name: "unmap an array of pages",
        engine: with_pages,
        call: |engine| engine.unmap_pages((0..MANY).map(|page| Iova(2 * page * PAGE))).map(drop),
    },
    Large {
        name: "map a region in many entries",
        engine: || Engine::new(Box::new(Sim::new(SimConfig::default())), small_entries()).unwrap(),
        call: |engine| engine.map_region(Region { hva: hva(0x1000), ..ram(1 << 33, MANY * ENTRY) }),
    },
    Large {
        name: "list the entries",
        engine: with_pages,
        call: |engine| engine.list_entries(|entry| entry.range).map(drop),
    },
    Large {
        name: "read dirty pages",
        engine: tracking,
        // One entry of which one page is asked for: the bitmap is that of the entry.
        call: |engine| engine.read_dirty(range(0, PAGE), &mut [0]),
    },
];

/// The call with so much memory: 0 if it succeeds; 1 if it fails, has changed nothing, and then succeeds with enough.
fn limited(large: &Large, engine: &Engine, budget: u64) -> i32 {
    child::limit(HANGS_AFTER_S);
    let state = || (engine.regions(), engine.entries(), engine.info().poisoned);
    let before = state();
    BUDGET.store(HELD.load(Ordering::Relaxed) + budget, Ordering::Relaxed);
    let answer = (large.call)(engine);
    BUDGET.store(NEVER, Ordering::Relaxed);
    let Err(error) = answer else { return 0 };
    assert_eq!(error.errno, Errno::ENOMEM, "{error}");
    assert!(state() == before, "{error}");
    (large.call)(engine).unwrap();
    1
}

/// Fails unless a large call returns ENOMEM with little memory, succeeds with enough, and does nothing else in between.
fn large(large: &Large, most: &AtomicU64) {
    let engine = (large.engine)();
    let all = child::run(|| {
        let held = HELD.load(Ordering::Relaxed);
        MOST.store(held, Ordering::Relaxed);
        (large.call)(&engine).unwrap();
        most.store(MOST.load(Ordering::Relaxed) - held, Ordering::Relaxed);
        0
    });
    assert_eq!(all, Ended::Exited(0), "{}", large.name);
    let most = most.load(Ordering::Relaxed);
    // Below a few KiB there is not even the memory for the error.
    let budgets = (0..6).map(|part| (most * part / 6).max(64 << 10)).chain([most, 2 * most]);
    let answers: Vec<Ended> = budgets.map(|budget| child::run(|| limited(large, &engine, budget))).collect();
    println!("{}: {most} bytes, {answers:?}", large.name);
    let succeed = answers.iter().position(|ended| *ended == Ended::Exited(0)).unwrap_or(0);
    let (failed, succeeded) = answers.split_at(succeed);
    assert!(!failed.is_empty() && failed.iter().all(|ended| *ended == Ended::Exited(1)), "{answers:?}");
    assert!(succeeded.iter().all(|ended| *ended == Ended::Exited(0)), "{answers:?}");
}

/// Real memory of 4 MiB for several threads, and regions that are never faulted in.
const REAL: u64 = 128 << 30;

/// What a caller does, with a failure anywhere in it.
fn small(rules: Rules) {
    let bytes = (4 * MIB) as usize;
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: with MAP_FIXED_NOREPLACE a mapping replaces nothing.
    let got = unsafe {
        libc::mmap(REAL as *mut libc::c_void, bytes, protection, flags | libc::MAP_FIXED_NOREPLACE, -1, 0)
    };
    assert_eq!(got as u64, REAL);
    let populate = if rules == Rules::Type1 { PopulatePolicy::Upfront } else { PopulatePolicy::Overlapped };
    let sim = Sim::new(SimConfig { rules, populate, ..SimConfig::default() });
    let backend = Box::new(sim.clone());
    let log = Log::to(|_, _| {});
    let config = Config { entry_size: ENTRY, threads: 3, oversubscribe: true, log, ..Config::default() };
    let armed = |work: &mut dyn FnMut() -> Result<()>| {
        ARMED.store(true, Ordering::Relaxed);
        let done = work();
        ARMED.store(false, Ordering::Relaxed);
        done
    };
    let mut created = None;
    armed(&mut || {
        created = Some(Engine::new(backend.clone(), Config { cuts: vec![MIB], ..Config::default() })?);
        Ok(())
    })
    .unwrap();
    drop(created);
    let engine = Arc::new(Engine::new(backend, config).unwrap());
    let region = |iova, address, length| Region { hva: hva(address), ..ram(iova, length) };
    let calls: [&mut dyn FnMut() -> Result<()>; 7] = [
        &mut || {
            engine.begin()?;
            engine.map_region(region(0, REAL, 4 * MIB))?;
            engine.map_region(region(1 << 30, REAL, PAGE))?;
            engine.commit().map(drop)
        },
        &mut || engine.unmap(range(MIB, PAGE)).map(drop),
        &mut || {
            let pages = [1, 3, 4, 8].map(|page| (Iova((2 << 30) + page * PAGE), hva(REAL + page * PAGE)));
            engine.map_pages(pages, Perm::Read, Backing(7), true)
        },
        &mut || {
            engine.begin()?;
            engine.map_region(region(3 << 30, REAL, 4 * MIB))?;
            engine.commit_background()?;
            engine.wait(None, None).map(drop)
        },
        &mut || engine.remap(hva(REAL), PAGE).map(drop),
        &mut || engine.unmap_pages([Iova((2 << 30) + 3 * PAGE)]).map(drop),
        &mut || engine.close(),
    ];
    for call in calls {
        // No call of the kernel fails, so an error can only be that there was no memory.
        if let Err(error) = armed(call) {
            assert_eq!(error.errno, Errno::ENOMEM, "{error}");
        }
        if !engine.info().poisoned {
            assert_table(&engine, &sim);
        }
    }
    assert!(sim.mappings().is_empty());
}

/// Each allocation of the small calls fails. Returns how many processes were aborted, and how many were not.
fn sweep(rules: Rules, counted: &AtomicU64) -> (u64, u64) {
    let (mut aborted, mut went_on) = (0, 0);
    for nth in 0.. {
        let ended = child::run(|| {
            child::limit(HANGS_AFTER_S);
            // What an aborted process prints is as it should be, and what it leaves is of no use.
            child::silence();
            FAILS.store(nth, Ordering::Relaxed);
            small(rules);
            counted.store(COUNT.load(Ordering::Relaxed), Ordering::Relaxed);
            0
        });
        match ended {
            Ended::Killed(libc::SIGABRT) => aborted += 1,
            Ended::Exited(0) if counted.load(Ordering::Relaxed) <= nth => break,
            Ended::Exited(0) => went_on += 1,
            ended => panic!("{rules:?}: allocation {nth}: {ended:?}"),
        }
    }
    (aborted, went_on)
}

/// Runs all of it.
#[unsafe(no_mangle)]
pub extern "C" fn main(_: c_int, _: *const *const c_char) -> c_int {
    // A process that is aborted would look for the names of its functions, which takes most of the time.
    // SAFETY: this process has one thread.
    unsafe { std::env::set_var("RUST_BACKTRACE", "0") };
    // SAFETY: an atomic may be zero.
    let told: &AtomicU64 = unsafe { child::shared() };
    for call in LARGE {
        large(call, told);
    }
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (aborted, went_on) = sweep(rules, told);
        println!("{rules:?}: {aborted} aborted, {went_on} went on");
        assert!(aborted > 0, "the allocator of this test is not that of the library");
    }
    0
}
