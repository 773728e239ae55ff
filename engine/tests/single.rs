//! Regions that are mapped and unmapped one by one, outside transactions: what they cost, and that they are as right as
//! a transaction.
#![allow(unsafe_code, reason = "counts allocations and system calls")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};

use common::{Piece, Space, Step, UNIT, UNITS, hva, ram, range};
use proptest::prelude::*;
use vfio_fast_engine::addr::{Iova, PageSizes};
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::error::{ErrorKind, Op};
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Engine, Errno};
use vfio_fast_testing as common;
use vfio_fast_testing::accepting::Accepting;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

struct CountingAllocator;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's obligations are the same.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn exact(start: u64, length: u64) -> Region {
    // No memory has this address: faulting it in would be a system call that fails.
    Region { exact: true, hva: hva(1 << 46), backing: Backing::UNKNOWN, ..ram(start, length) }
}

/// An engine that holds `regions` pages, each a region, with a gap after each, from 4 GiB on.
fn crowded(regions: u64) -> Engine {
    let engine = Engine::new(Box::<Accepting>::default(), Config::default()).unwrap();
    for number in 0..regions {
        engine.map_region(exact((4 << 30) + number * 2 * PAGE, PAGE)).unwrap();
    }
    engine
}

fn toggle(engine: &Engine, region: Region) {
    engine.map_region(region).unwrap();
    assert_eq!(engine.unmap(region.range).unwrap(), region.range.length());
}

/// Regions between and after those of [`crowded`].
fn singles(regions: u64) -> [Region; 4] {
    let (middle, end) = ((4 << 30) + regions / 2 * 2 * PAGE + PAGE, 1 << 40);
    let joinable = Region { exact: false, backing: Backing(7), ..exact(end + MIB, PAGE) };
    [exact(middle, PAGE), exact(end, PAGE), exact(end, 2 * MIB), joinable]
}

#[test]
fn one_region_allocates_nothing() {
    for regions in [0, 1, 1_000, 100_000] {
        let engine = crowded(regions);
        for track in [false, true] {
            engine.track_dirty(track).unwrap();
            for region in singles(regions) {
                // A node of a tree may be full, or the first one.
                (0..2).for_each(|_| toggle(&engine, region));
                let before = ALLOCATIONS.get();
                (0..100).for_each(|_| toggle(&engine, region));
                assert_eq!(ALLOCATIONS.get() - before, 0, "{regions} regions, {region:?}, {track}");
            }
        }
    }
}

#[test]
fn pages_of_an_array_that_are_mapped_one_by_one_are_single_regions() {
    let engine = crowded(1_000);
    let page = || {
        engine.map_pages([(Iova(1 << 40), hva(1 << 46))], Perm::ReadWrite, Backing::UNKNOWN, false).unwrap();
        assert_eq!(engine.unmap_pages([Iova(1 << 40)]).unwrap(), PAGE);
    };
    (0..2).for_each(|_| page());
    let before = ALLOCATIONS.get();
    (0..100).for_each(|_| page());
    assert_eq!(ALLOCATIONS.get() - before, 0);
}

/// System calls of one thread, counted by Syscall User Dispatch (Linux 5.11): the kernel delivers a signal instead of
/// making the call.
#[cfg(target_arch = "x86_64")]
mod system_calls {
    use super::*;

    const PR_SET_SYSCALL_USER_DISPATCH: libc::c_int = 59;
    const OFF: libc::c_ulong = 0;
    const ON: libc::c_ulong = 1;
    const ALLOW: u8 = 0;
    const BLOCK: u8 = 1;
    const NONE: i64 = -1;

    static SELECTOR: AtomicU8 = AtomicU8::new(ALLOW);
    static FIRST: AtomicI64 = AtomicI64::new(NONE);

    /// Notes the number of the call, makes it, and lets the calls after it pass, its own return among them.
    extern "C" fn on_call(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        SELECTOR.store(ALLOW, Ordering::Relaxed);
        // SAFETY: the kernel passes a ucontext_t to a handler with SA_SIGINFO, and nothing else uses it.
        let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        FIRST.store(registers[libc::REG_RAX as usize], Ordering::Relaxed);
        let [rax, rdi, rsi, rdx, r10, r8, r9] = [
            libc::REG_RAX,
            libc::REG_RDI,
            libc::REG_RSI,
            libc::REG_RDX,
            libc::REG_R10,
            libc::REG_R8,
            libc::REG_R9,
        ]
        .map(|register| registers[register as usize]);
        // SAFETY: these are the arguments of the interrupted caller, which has met the call's obligations.
        let result = unsafe { libc::syscall(rax, rdi, rsi, rdx, r10, r8, r9) };
        registers[libc::REG_RAX as usize] = result;
    }

    fn dispatch(mode: libc::c_ulong) {
        let selector = if mode == OFF { std::ptr::null_mut() } else { SELECTOR.as_ptr() };
        // SAFETY: the selector is a static.
        let set = unsafe { libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, mode, 0usize, 0usize, selector) };
        assert_eq!(set, 0, "Syscall User Dispatch: {}", std::io::Error::last_os_error());
    }

    /// Runs `work`; returns the number of its first system call.
    fn first_call(work: impl FnOnce()) -> Option<i64> {
        FIRST.store(NONE, Ordering::Relaxed);
        SELECTOR.store(BLOCK, Ordering::Relaxed);
        work();
        SELECTOR.store(ALLOW, Ordering::Relaxed);
        Some(FIRST.load(Ordering::Relaxed)).filter(|number| *number != NONE)
    }

    #[test]
    fn one_region_makes_no_system_call_but_the_kernels_map_and_unmap() {
        let handler: extern "C" fn(_, _, _) = on_call;
        // SAFETY: all fields of the struct may be zero.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler only makes the system call of the interrupted code and writes to statics.
        assert_eq!(unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) }, 0);
        let engine = crowded(1_000);
        dispatch(ON);
        let control = first_call(|| {
            // SAFETY: the call has no arguments.
            let _ = unsafe { libc::syscall(libc::SYS_getppid) };
        });
        assert_eq!(control, Some(libc::SYS_getppid));
        for track in [false, true] {
            engine.track_dirty(track).unwrap();
            for region in singles(1_000) {
                toggle(&engine, region);
                let call = first_call(|| (0..100).for_each(|_| toggle(&engine, region)));
                assert_eq!(call, None, "{region:?}, {track}");
            }
        }
        dispatch(OFF);
    }
}

#[test]
fn the_limit_on_locked_memory_is_read_only_after_a_failure() {
    for (refuse, reads) in [(None, 0), (Some(Errno::EFAULT), 0), (Some(Errno::ENOMEM), 1)] {
        let backend = Accepting { refuse, ..Accepting::default() };
        let memlock_reads = Arc::clone(&backend.memlock_reads);
        let engine = Engine::new(Box::new(backend), Config::default()).unwrap();
        assert_eq!(engine.map_region(exact(0, PAGE)).err().map(|error| error.errno), refuse);
        assert_eq!(memlock_reads.load(Ordering::Relaxed), reads, "{refuse:?}");
    }
}

#[test]
fn too_little_memlock_for_one_region_is_told_with_numbers() {
    for memlock_told in [true, false] {
        let config = SimConfig { memlock_limit: Some(3 * PAGE), memlock_told, ..SimConfig::default() };
        let (engine, sim) = common::engine(config);
        engine.map_region(exact(0, 2 * PAGE)).unwrap();
        let error = engine.map_region(exact(MIB, 2 * PAGE)).unwrap_err();
        assert_eq!(error.errno, Errno::ENOMEM);
        if memlock_told {
            let kind = ErrorKind::Memlock { needed: 2 * PAGE, locked: 2 * PAGE, limit: 3 * PAGE };
            assert_eq!((error.op, &error.kind), (Op::Check, &kind));
        } else {
            // No limit that can be seen explains it.
            let unexplained = matches!(error.kind, ErrorKind::NoMemory { user_limit: None, .. });
            assert!(error.op == Op::Map && unexplained, "{error}");
        }
        assert_eq!((error.range, error.hva), (Some(range(MIB, 2 * PAGE)), Some(hva(1 << 46))));
        let stats = engine.stats();
        assert_eq!((stats.commits, stats.failed_commits, stats.rollbacks), (1, 1, 1));
        assert_eq!(stats.preflight_refusals, u64::from(memlock_told));
        assert_eq!(engine.regions().len(), 1);
        common::assert_table(&engine, &sim);
        engine.map_region(exact(MIB, PAGE)).unwrap();
    }
}

#[test]
fn too_little_memlock_for_a_small_array_is_told_with_numbers() {
    let pages = |count: u64| (0..count).map(|page| (Iova(2 * page * PAGE), hva((1 << 46) + 2 * page * PAGE)));
    let map =
        |engine: &Engine, count| engine.map_pages(pages(count), Perm::ReadWrite, Backing::UNKNOWN, false);
    let config = SimConfig { memlock_limit: Some(6 * PAGE), ..SimConfig::default() };
    let (engine, sim) = common::engine(config);
    engine.map_region(exact(MIB, PAGE)).unwrap();
    let error = map(&engine, 8).unwrap_err();
    // The numbers from before the array, of which the kernel has mapped five pages.
    let kind = ErrorKind::Memlock { needed: 8 * PAGE, locked: PAGE, limit: 6 * PAGE };
    assert_eq!((error.op, error.errno, error.kind), (Op::Check, Errno::ENOMEM, kind));
    // One call takes all five back.
    assert_eq!(sim.calls().len(), 1 + 6 + 1);
    common::assert_table(&engine, &sim);
    map(&engine, 5).unwrap();
    // If nothing fails, the limit is not read.
    let backend = Accepting::default();
    let memlock_reads = Arc::clone(&backend.memlock_reads);
    map(&Engine::new(Box::new(backend), Config::default()).unwrap(), 512).unwrap();
    assert_eq!(memlock_reads.load(Ordering::Relaxed), 0);
}

#[test]
fn limits_are_asked_again_before_they_refuse_one_region() {
    let limited = SimConfig { dma_avail: 1, iova_ranges: vec![range(0, MIB)], ..SimConfig::default() };
    let (engine, sim) = common::engine(limited);
    engine.map_region(exact(0, PAGE)).unwrap();
    let full = engine.map_region(exact(2 * PAGE, PAGE)).unwrap_err();
    assert_eq!((full.errno, full.needed_and_available()), (Errno::ENOSPC, Some((1, 0))));
    sim.reconfigure(|config| config.dma_avail = 2);
    let outside = engine.map_region(exact(MIB, PAGE)).unwrap_err();
    assert_eq!((outside.op, outside.errno), (Op::Check, Errno::EINVAL));
    assert!(matches!(outside.kind, ErrorKind::OutsideIova { .. }), "{outside}");
    assert_eq!(sim.calls().len(), 1, "the kernel was not asked to map what cannot be mapped");
    sim.reconfigure(|config| config.iova_ranges.clear());
    engine.map_region(exact(MIB, PAGE)).unwrap();
    common::assert_table(&engine, &sim);
}

#[test]
fn an_ioas_that_gets_its_device_late_has_the_pages_of_the_device() {
    const PAGE_64K: u64 = 64 << 10;
    let page_sizes = PageSizes::from_bitmap(0x2001_0000);
    let (engine, sim) =
        common::engine(SimConfig { attached: false, page_sizes, ..common::keeping(Rules::Iommufd) });
    assert_eq!(engine.page(), PAGE);
    sim.attach().unwrap();
    for (region, value) in [
        (exact(0, PAGE_64K + PAGE), PAGE_64K + PAGE),
        (Region { hva: hva(PAGE), ..exact(0, PAGE_64K) }, PAGE),
        (exact(PAGE, PAGE_64K), PAGE),
    ] {
        let error = engine.map_region(region).unwrap_err();
        assert_eq!(
            (error.errno, error.kind),
            (Errno::EINVAL, ErrorKind::Misaligned { value, page: PAGE_64K })
        );
    }
    assert_eq!(sim.calls().len(), 1, "after the first refusal the page is known");
    assert_eq!(engine.page(), PAGE_64K);
    engine.map_region(exact(0, PAGE_64K)).unwrap();
}

#[test]
fn a_wrong_byte_count_of_one_region_poisons() {
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (engine, sim) = common::engine(common::keeping(rules));
        let region = exact(0, PAGE);
        engine.map_region(region).unwrap();
        assert!(sim.steal(0));
        let error = engine.unmap(region.range).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ByteCount { expected: PAGE, got: 0 });
        assert_eq!(engine.map_region(region).unwrap_err().errno, Errno::ENOTRECOVERABLE);
    }
}

fn single() -> impl Strategy<Value = Step> {
    let map = (0..UNITS, 1u64..20, 1u64..4, any::<bool>(), any::<bool>()).prop_map(
        |(start, units, object, exact, device)| {
            let kind = if device { Kind::Device } else { Kind::Ram };
            let units = units.min(UNITS - start);
            let (offset, perm) = (start, Perm::ReadWrite);
            Step::Map(Piece { start, units, object, offset, perm, kind, join: object > 1, exact })
        },
    );
    let unmap = (0..UNITS, 1u64..20)
        .prop_map(|(start, units)| Step::Unmap { start, units: units.min(UNITS - start) });
    prop_oneof![3 => map, 2 => unmap, 2 => (0..64usize).prop_map(|nth| Step::Unmap { start: nth as u64, units: 0 })]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Random regions outside transactions against the page-by-page oracle, with a call that fails. An unmap of 0
    /// units stands for one of exactly a region that is wanted.
    #[test]
    fn single_regions_leave_what_is_wanted(
        steps in prop::collection::vec(single(), 1..40),
        rules in common::rules(),
        fails in prop::option::of((1u64..40, prop::sample::select(vec![Errno::ENOMEM, Errno::EBUSY, Errno::EFAULT]))),
        track in any::<bool>(),
    ) {
        let failures = fails.into_iter().collect();
        let sim = Sim::new(SimConfig { failures, ..common::keeping(rules) });
        let config = Config { entry_size: common::ENTRY, threads: 1, ..Config::default() };
        let engine = Engine::new(Box::new(sim.clone()), config).unwrap();
        if track && rules == Rules::Type1 {
            engine.track_dirty(true).unwrap();
        }
        let mut space = Space::new(0);
        for step in steps {
            let step = match step {
                Step::Unmap { start, units: 0 } => {
                    let regions = engine.regions();
                    let Some(region) = regions.get(start as usize % regions.len().max(1)) else { continue };
                    Step::Unmap { start: region.range.start() / UNIT, units: region.range.length() / UNIT }
                }
                // Of a device region that the kernel refuses, the rest stays wanted.
                Step::Map(piece) if fails.is_some() => Step::Map(Piece { kind: Kind::Ram, ..piece }),
                step => step,
            };
            let before = space.clone();
            let valid = space.apply(step);
            let done = common::drive(&engine, &before, step);
            if valid && done.is_err() {
                // The call that was to fail.
                space = before.after_failure(&[step]);
            } else {
                prop_assert_eq!(done.is_ok(), valid, "{:?}", done);
            }
            if let (Ok(bytes), Step::Unmap { start, units }) = (&done, step) {
                prop_assert_eq!(*bytes, before.wanted_units(start, units) * UNIT);
            }
            if engine.info().poisoned {
                break;
            }
            space.assert_mapped(&sim.mappings());
            common::assert_table(&engine, &sim);
            let stats = engine.stats();
            prop_assert_eq!((stats.regions, stats.wanted_bytes), (
                engine.regions().len() as u64,
                space.wanted_units(0, UNITS) * UNIT,
            ));
        }
    }
}
