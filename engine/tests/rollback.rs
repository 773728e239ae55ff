//! What holds after an unmap that cannot be done or whose rest cannot be mapped again: what was unmapped is not wanted,
//! the error says what is left, and the engine goes on.

use common::{
    Difference, Space, Step, UNIT, assert_table, drive, engine_with, hva, keeping, ram, range, transactions,
};
use proptest::prelude::*;
use std::sync::{Arc, Mutex};
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::sim::{Call, Rules, Sim, SimConfig};
use vfio_fast_engine::error::{ErrorKind, Op, Unfinished};
use vfio_fast_engine::log::Log;
use vfio_fast_engine::region::{Kind, Region};
use vfio_fast_engine::{Config, Engine, Errno, Error};
use vfio_fast_testing as common;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const BOTH: [Rules; 2] = [Rules::Type1, Rules::Iommufd];

fn open(config: SimConfig) -> (Engine, Sim) {
    let sim = Sim::new(config);
    (Engine::new(Box::new(sim.clone()), Config::default()).unwrap(), sim)
}

fn held(sim: &Sim) -> Vec<IovaRange> {
    sim.mappings().iter().map(|mapping| mapping.range).collect()
}

fn wanted(engine: &Engine) -> Vec<IovaRange> {
    engine.regions().iter().map(|region| region.range).collect()
}

fn left(error: &Error) -> Unfinished {
    error.unfinished.as_deref().cloned().unwrap_or_default()
}

/// The kernel has no entry for the rest: nothing is touched, and devices keep access to the rest.
#[test]
fn an_unmap_whose_rest_does_not_fit_touches_nothing() {
    let (engine, sim) = open(SimConfig { dma_avail: 1, ..SimConfig::default() });
    engine.map_region(ram(GIB, 16 * MIB)).unwrap();
    let calls = sim.calls();
    let (whole, gone) = (range(GIB, 16 * MIB), range(GIB + 4 * MIB, MIB));
    let rests = [range(GIB, 4 * MIB), range(GIB + 5 * MIB, 11 * MIB)];
    let refused = |answer: Result<u64, Error>| {
        let error = answer.unwrap_err();
        assert_eq!((error.op, error.errno, error.range), (Op::Check, Errno::ENOSPC, Some(whole)));
        assert_eq!(error.needed_and_available(), Some((2, 1)));
        assert_eq!(left(&error), Unfinished { leftover: vec![whole], ..Unfinished::default() });
        assert_eq!(sim.calls(), calls);
        // What was unmapped is not wanted, in any case.
        assert_eq!(wanted(&engine), rests);
        assert!(!engine.info().poisoned);
        assert_eq!(engine.info().leftover_entries, 1);
        assert_table(&engine, &sim);
    };
    refused(engine.unmap(gone));
    // Trying again fails again, although nothing there is wanted.
    refused(engine.unmap(gone));
    // Once there is room, the same call does it.
    sim.reconfigure(|config| config.dma_avail = 2);
    assert_eq!(engine.unmap(gone).unwrap(), 0);
    assert_eq!(held(&sim), rests);
    assert_eq!(engine.info().leftover_entries, 0);
}

/// Joined regions: a caller that unmaps what it mapped can meet the same limit.
#[test]
fn a_joined_region_whose_neighbours_do_not_fit_stays() {
    let (engine, sim) = open(SimConfig { dma_avail: 1, ..SimConfig::default() });
    engine.begin().unwrap();
    for n in 0..3 {
        engine.map_region(ram(GIB + n * MIB, MIB)).unwrap();
    }
    engine.commit().unwrap();
    let error = engine.unmap(range(GIB + MIB, MIB)).unwrap_err();
    assert_eq!(error.errno, Errno::ENOSPC);
    assert_eq!(held(&sim), [range(GIB, 3 * MIB)]);
    // Unmapping a neighbour as well leaves one rest, which fits.
    engine.unmap(range(GIB + 2 * MIB, MIB)).unwrap();
    assert_eq!(held(&sim), [range(GIB, MIB)]);
    assert_table(&engine, &sim);
}

/// Of a transaction that is refused, what can be unmapped is unmapped.
#[test]
fn only_the_entry_with_a_rest_that_does_not_fit_stays() {
    let (engine, sim) = open(SimConfig { dma_avail: 3, ..SimConfig::default() });
    let regions = [0, 1, 2].map(|n| Region { join: false, ..ram(n * 64 * MIB, 8 * MIB) });
    regions.into_iter().for_each(|region| engine.map_region(region).unwrap());
    engine.begin().unwrap();
    engine.unmap(regions[0].range).unwrap();
    for n in [1, 3, 5] {
        engine.unmap(range(64 * MIB + n * MIB, MIB)).unwrap();
    }
    engine.map_region(ram(GIB, MIB)).unwrap();
    let error = engine.commit().unwrap_err();
    assert_eq!(error.errno, Errno::ENOSPC);
    assert_eq!(left(&error).leftover, [regions[1].range]);
    assert_eq!(held(&sim), [regions[1].range, regions[2].range]);
    // Additions that do not fit do not keep anything mapped.
    engine.unmap(regions[1].range).unwrap();
    engine.begin().unwrap();
    engine.unmap(range(128 * MIB, MIB)).unwrap();
    for n in 0..3 {
        engine.map_region(ram(GIB + 2 * n * MIB, MIB)).unwrap();
    }
    let error = engine.commit().unwrap_err();
    assert_eq!((error.errno, error.unfinished), (Errno::ENOSPC, None));
    assert_eq!(held(&sim), [range(129 * MIB, 7 * MIB)]);
}

/// The same for RLIMIT_MEMLOCK, which was lowered after the memory was mapped.
#[test]
fn an_unmap_whose_rest_would_exceed_the_limit_of_locked_memory_touches_nothing() {
    let (engine, sim) = open(SimConfig { memlock_limit: Some(64 * MIB), ..SimConfig::default() });
    engine.map_region(ram(GIB, 16 * MIB)).unwrap();
    sim.reconfigure(|config| config.memlock_limit = Some(8 * MIB));
    let calls = sim.calls();
    let error = engine.unmap(range(GIB, MIB)).unwrap_err();
    assert_eq!((error.op, error.errno), (Op::Check, Errno::ENOMEM));
    assert_eq!(left(&error).leftover, [range(GIB, 16 * MIB)]);
    assert_eq!(sim.calls(), calls);
    engine.unmap(range(GIB, 8 * MIB)).unwrap();
    assert_eq!(held(&sim), [range(GIB + 8 * MIB, 8 * MIB)]);
}

/// With iommufd, which counts per user, the kernel finds that out. That the rest is not mapped any more is an error of a
/// map, also where a limit explains it.
#[test]
fn a_rest_that_exceeds_a_limit_in_the_kernel_is_missing() {
    let (engine, sim) = open(SimConfig { memlock_limit: Some(64 * MIB), ..keeping(Rules::Iommufd) });
    engine.map_region(ram(GIB, 16 * MIB)).unwrap();
    sim.reconfigure(|config| config.memlock_limit = Some(8 * MIB));
    let rest = range(GIB + MIB, 15 * MIB);
    let error = engine.unmap(range(GIB, MIB)).unwrap_err();
    assert_eq!((error.op, error.errno, error.range), (Op::Map, Errno::ENOMEM, Some(rest)), "{error}");
    assert!(matches!(error.kind, ErrorKind::UserMemlock { .. }), "{error}");
    assert_eq!((left(&error).missing, held(&sim)), (vec![rest], vec![]));
}

/// A page of an entry cannot be pinned any more (a memory error), and another page is unmapped. Only the rest that has
/// the page is lost.
#[test]
fn a_rest_that_cannot_be_mapped_again_is_told_and_stays_wanted() {
    for rules in BOTH {
        let (engine, sim) = open(keeping(rules));
        let region = ram(GIB, 16 * MIB);
        engine.map_region(region).unwrap();
        let broken = region.hva.raw() + 8 * MIB;
        sim.reconfigure(|config| config.unmappable = vec![(broken, broken + PAGE - 1)]);
        let (before, after) = (range(GIB, 4 * MIB), range(GIB + 4 * MIB + PAGE, 12 * MIB - PAGE));
        let error = engine.unmap(range(GIB + 4 * MIB, PAGE)).unwrap_err();
        assert_eq!((error.op, error.errno, error.range), (Op::Map, Errno::EFAULT, Some(after)), "{rules:?}");
        assert_eq!(left(&error), Unfinished { missing: vec![after], ..Unfinished::default() });
        assert!(!engine.info().poisoned);
        assert_eq!((held(&sim), wanted(&engine)), (vec![before], vec![before, after]));
        assert_eq!(engine.info().missing_bytes, after.length());
        // A commit elsewhere is not affected, and does not try again.
        let calls = sim.calls().len();
        engine.map_region(ram(4 * GIB, MIB)).unwrap();
        assert_eq!(sim.calls().len(), calls + 1);
        // A call that touches it tries again: what is unmapped is unmapped in any case.
        let error = engine.unmap(range(GIB + 15 * MIB, MIB)).unwrap_err();
        let rest = range(after.start(), after.length() - MIB);
        assert_eq!((error.errno, left(&error).missing), (Errno::EFAULT, vec![rest]));
        sim.reconfigure(|config| config.unmappable.clear());
        engine.unmap(range(GIB + 14 * MIB, MIB)).unwrap();
        assert_eq!(held(&sim)[..2], [before, range(after.start(), after.length() - 2 * MIB)]);
        assert_eq!(engine.info().missing_bytes, 0);
        assert_table(&engine, &sim);
    }
}

/// An entry that something else uses (a guest's hardware queue, a mediated device) stays, and everything else goes on.
#[test]
fn an_entry_in_use_stays_until_it_can_be_unmapped() {
    let (engine, sim) = open(keeping(Rules::Iommufd));
    let whole = range(GIB, 16 * MIB);
    engine.map_region(ram(GIB, 16 * MIB)).unwrap();
    sim.reconfigure(|config| config.busy.push(GIB));
    let error = engine.unmap(whole).unwrap_err();
    assert_eq!((error.op, error.errno, error.range), (Op::Unmap, Errno::EBUSY, Some(whole)));
    let still = Unfinished { leftover: vec![whole], refused: Some(Errno::EBUSY), ..Unfinished::default() };
    assert_eq!(left(&error), still);
    assert!(!engine.info().poisoned);
    assert_eq!((held(&sim), wanted(&engine)), (vec![whole], vec![]));
    // Other memory is mapped and unmapped as before.
    engine.map_region(ram(4 * GIB, MIB)).unwrap();
    engine.unmap(range(4 * GIB, MIB)).unwrap();
    // An unmap of more than it tries again, also where it unmaps a single region besides.
    engine.map_region(ram(4 * GIB, MIB)).unwrap();
    let error = engine.unmap(range(0, 8 * GIB)).unwrap_err();
    assert_eq!((error.op, error.errno), (Op::Unmap, Errno::EBUSY));
    assert_eq!((held(&sim), wanted(&engine)), (vec![whole], vec![]));
    // Other memory at its addresses cannot be mapped, and nothing of it stays.
    let other = Region { hva: hva(1 << 44), ..ram(GIB, 16 * MIB) };
    let error = engine.map_region(other).unwrap_err();
    assert_eq!((error.op, error.errno), (Op::Unmap, Errno::EBUSY));
    assert_eq!((held(&sim), wanted(&engine)), (vec![whole], vec![]));
    // Nor is it kept for the same memory: its pages may have been replaced since it was unmapped.
    sim.reconfigure(|config| config.busy.clear());
    let calls = sim.calls().len();
    engine.map_region(ram(GIB, 16 * MIB)).unwrap();
    let made = &sim.calls()[calls..];
    assert!(matches!(made, [Call::Unmap(gone), Call::Map(_)] if *gone == whole), "{made:?}");
    assert_eq!(engine.info().leftover_entries, 0);
    assert_table(&engine, &sim);
}

/// A part of an entry in use is unmapped: devices keep access to the whole entry, and closing tries once more.
#[test]
fn a_cut_entry_in_use_stays_whole() {
    let (engine, sim) = open(keeping(Rules::Iommufd));
    let whole = range(GIB, 16 * MIB);
    engine.map_region(ram(GIB, 16 * MIB)).unwrap();
    sim.reconfigure(|config| config.busy.push(GIB));
    let error = engine.unmap(range(GIB, MIB)).unwrap_err();
    assert_eq!(left(&error).leftover, [whole]);
    assert_eq!((held(&sim), wanted(&engine)), (vec![whole], vec![range(GIB + MIB, 15 * MIB)]));
    sim.reconfigure(|config| config.busy.clear());
    engine.close().unwrap();
    assert!(sim.mappings().is_empty());
}

/// A caller tries again without a range: by then, other regions are wanted in what it unmapped.
#[test]
fn leftovers_are_unmapped_without_a_range() {
    for cut in [false, true] {
        let (engine, sim) = open(keeping(Rules::Iommufd));
        let (first, second) = (ram(GIB, 16 * MIB), ram(GIB + 16 * MIB, 16 * MIB));
        engine.map_region(first).unwrap();
        engine.map_region(second).unwrap();
        assert_eq!(engine.retry_unmap().unwrap(), 0);
        sim.reconfigure(|config| config.busy.push(GIB));
        let gone = if cut { range(GIB, MIB) } else { range(GIB, 32 * MIB) };
        engine.unmap(gone).unwrap_err();
        // Another region takes a part of what was unmapped and is not busy.
        if !cut {
            engine.map_region(second).unwrap();
        }
        let before = wanted(&engine);
        let error = engine.retry_unmap().unwrap_err();
        assert_eq!((error.op, error.errno, error.range), (Op::Unmap, Errno::EBUSY, Some(first.range)));
        assert_eq!((wanted(&engine), engine.info().leftover_entries), (before.clone(), 1));
        engine.begin().unwrap();
        assert_eq!(engine.retry_unmap().unwrap_err().errno, Errno::EBUSY);
        engine.abort().unwrap();
        sim.reconfigure(|config| config.busy.clear());
        assert_eq!(engine.retry_unmap().unwrap(), 16 * MIB);
        assert_eq!((held(&sim), wanted(&engine)), (before.clone(), before));
        assert_eq!(engine.info().leftover_entries, 0);
        let calls = sim.calls().len();
        assert_eq!(engine.retry_unmap().unwrap(), 0);
        assert_eq!(sim.calls().len(), calls);
        assert_table(&engine, &sim);
    }
}

/// A BAR that cannot be mapped again is no failure of its own, but it is told, logged and counted.
#[test]
fn a_bar_that_a_rollback_cannot_map_again_is_told() {
    let said = Arc::<Mutex<Vec<String>>>::default();
    let sink = Arc::clone(&said);
    let log = Log::to(move |level, message| sink.lock().unwrap().push(format!("{level:?} {message}")));
    let sim = Sim::new(SimConfig::default());
    let engine = Engine::new(Box::new(sim.clone()), Config { log, ..Config::default() }).unwrap();
    let bar = Region { kind: Kind::Device, ..ram(64 * GIB, 2 * GIB) };
    engine.map_region(bar).unwrap();
    let other = ram(8 * GIB, MIB);
    let broken = |region: &Region| (region.hva.raw(), region.hva.raw() + region.range.length() - 1);
    sim.reconfigure(|config| config.unmappable = vec![broken(&bar), broken(&other)]);
    engine.begin().unwrap();
    engine.unmap(range(64 * GIB, MIB)).unwrap();
    engine.map_region(other).unwrap();
    let error = engine.commit().unwrap_err();
    let rest = range(64 * GIB + MIB, 2 * GIB - MIB);
    assert_eq!(left(&error), Unfinished { devices: vec![rest], ..Unfinished::default() });
    assert_eq!((wanted(&engine), held(&sim)), (vec![rest], vec![]));
    assert_eq!(engine.stats().device_failures, 1);
    let rest = rest.to_string();
    assert!(error.to_string().contains(&format!("not mapped any more: IOVA {rest}")), "{error}");
    let said = said.lock().unwrap();
    let warned =
        said.iter().filter(|line| line.starts_with("Warn") && line.contains("no peer-to-peer DMA to it"));
    assert_eq!(warned.count(), 1, "{said:?}");
}

/// On type1 the kernel unmaps everything when the last group leaves; an IOAS keeps its mappings. Closing afterwards
/// succeeds with both.
#[test]
fn closing_after_the_last_group_has_left_succeeds() {
    for rules in BOTH {
        for regions in [1, 20] {
            for poisoned in [false, true] {
                let (engine, sim) = open(keeping(rules));
                (0..regions).for_each(|n| engine.map_region(ram(n * 8 * GIB, 6 * GIB)).unwrap());
                sim.detach();
                if rules == Rules::Type1 {
                    assert_eq!(sim.mappings(), []);
                    let error = engine.map_region(ram(1 << 50, MIB)).unwrap_err();
                    assert!(error.to_string().contains("its last group has left it"), "{error}");
                }
                if poisoned {
                    engine.poison("a test");
                }
                engine.close().unwrap();
                assert_eq!(sim.mappings(), [], "{rules:?}");
            }
        }
    }
    // An array of pages is unmapped in one call.
    let (engine, sim) = open(SimConfig::default());
    (0..20).for_each(|n| engine.map_region(ram(2 * n * MIB, MIB)).unwrap());
    sim.detach();
    engine.close().unwrap();
    // What is unmapped after that is an error, because it is known only then that the table is wrong.
    let (engine, sim) = open(SimConfig::default());
    engine.map_region(ram(0, MIB)).unwrap();
    sim.detach();
    assert_eq!(engine.unmap(range(0, MIB)).unwrap_err().errno, Errno::EINVAL);
    engine.close().unwrap();
}

/// What cannot be unmapped at the end is tried once, and named.
#[test]
fn closing_tries_once_and_names_what_is_left() {
    let (engine, sim) = open(keeping(Rules::Iommufd));
    (0..3).for_each(|n| engine.map_region(Region { join: false, ..ram(n * 2 * GIB, GIB) }).unwrap());
    sim.reconfigure(|config| config.busy = vec![0, 4 * GIB]);
    let calls = sim.calls().len();
    let error = engine.close().unwrap_err();
    assert_eq!((error.errno, left(&error).refused), (Errno::EBUSY, Some(Errno::EBUSY)));
    let still = "; still mapped, until the container itself is closed: IOVA [0x0, 0x3fffffff] and 1 more";
    assert!(error.to_string().ends_with(still), "{error}");
    assert_eq!(held(&sim), [range(0, GIB), range(4 * GIB, GIB)]);
    let tries = |start| {
        let calls = sim.calls()[calls..].to_vec();
        calls.iter().filter(|call| matches!(call, Call::Unmap(range) if range.start() == start)).count()
    };
    assert_eq!((tries(0), tries(2 * GIB), tries(4 * GIB)), (1, 1, 1));
}

/// The units of each entry that this space no longer wants as a whole.
fn cut(space: &Space, sim: &Sim) -> Vec<IovaRange> {
    let held = held(sim);
    let units = |entry: &IovaRange| {
        let first = entry.start() / UNIT;
        space.wanted_units(first, entry.length() / UNIT)
    };
    held.into_iter().filter(|entry| (1..entry.length() / UNIT).contains(&units(entry))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random transactions in a container with few entries. What is wanted is always what the rule says, and all of it
    /// is mapped: what does not fit is refused before anything is touched. Only entries that were cut stay.
    #[test]
    fn nothing_that_is_wanted_is_lost_for_want_of_entries(
        transactions in transactions(),
        dma_avail in 1u64..12,
        single in any::<bool>(),
    ) {
        let (engine, sim) = engine_with(1, SimConfig { dma_avail, ..SimConfig::default() });
        let mut space = Space::new(0);
        for steps in common::ram_only(transactions) {
            let before = space.clone();
            let mut applied = Vec::new();
            let mut refused = None;
            if single {
                for step in steps {
                    let was = space.clone();
                    if !space.apply(step) {
                        continue;
                    }
                    if let Err(error) = drive(&engine, &was, step) {
                        space = was.after_failure(&[step]);
                        refused = Some(error);
                    }
                }
            } else {
                engine.begin().unwrap();
                for step in steps {
                    if space.apply(step) {
                        applied.push(step);
                    }
                    let _ = drive(&engine, &space, step);
                }
                if let Err(error) = engine.commit() {
                    space = before.after_failure(&applied);
                    refused = Some(error);
                }
            }
            if let Some(error) = &refused {
                prop_assert_eq!((error.op, error.errno), (Op::Check, Errno::ENOSPC));
            }
            let Difference { left, missing } = space.difference(&sim.mappings());
            prop_assert_eq!(missing, Vec::<u64>::new());
            let cut = cut(&space, &sim);
            prop_assert!(left.iter().all(|unit| cut.iter().any(|entry| entry.contains(space.range(*unit, 1)))));
            prop_assert_eq!(engine.info().leftover_entries, cut.len() as u64);
            assert_table(&engine, &sim);
        }
        // With room, the next call that touches everything leaves nothing.
        sim.reconfigure(|config| config.dma_avail = 1000);
        drive(&engine, &space, Step::Unmap { start: 0, units: common::UNITS }).unwrap();
        prop_assert!(sim.mappings().is_empty());
    }
}
