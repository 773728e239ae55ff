//! The size of unmap calls, and how a container is emptied at the end, on the model.
#![allow(unsafe_code, reason = "the common part names host addresses")]

use common::{RAM, hva, ram, range};
use proptest::prelude::*;
use vfio_fast_engine::addr::{Iova, Superpages};
use vfio_fast_engine::backend::sim::{Call, Rules, Sim, SimConfig};
use vfio_fast_engine::error::ErrorKind;
use vfio_fast_engine::region::{Backing, Perm, Region};
use vfio_fast_engine::{Config, Engine, Errno};
use vfio_fast_testing as common;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
fn open(sim: SimConfig, config: Config) -> (Engine, Sim) {
    let sim = Sim::new(sim);
    (Engine::new(Box::new(sim.clone()), config).unwrap(), sim)
}

/// The lengths of the unmap calls from call `from` on; fails if one of them is a map call.
fn unmapped(sim: &Sim, from: usize) -> Vec<u64> {
    let length = |call: &Call| match call {
        Call::Unmap(range) => range.length(),
        call => panic!("{call:?} while unmapping"),
    };
    sim.calls()[from..].iter().map(length).collect()
}

/// Maps pages with a gap after each.
fn scattered(engine: &Engine, pages: u64) {
    let pages = (0..pages).map(|n| (Iova(2 * n * PAGE), hva(RAM + 2 * n * PAGE)));
    engine.map_pages(pages, Perm::ReadWrite, Backing(1), false).unwrap();
}

#[test]
fn unmaps_are_joined_but_bounded_in_bytes() {
    let (engine, sim) = open(SimConfig::default(), Config::default());
    engine.map_region(ram(GIB, 256 * GIB)).unwrap();
    let calls = sim.calls().len();
    engine.unmap(range(GIB, 256 * GIB)).unwrap();
    assert_eq!(unmapped(&sim, calls), [4 * GIB; 64]);
    // A single entry larger than the bound takes one call.
    engine.map_region(Region { exact: true, ..ram(0, 16 * GIB) }).unwrap();
    let calls = sim.calls().len();
    engine.unmap(range(0, 16 * GIB)).unwrap();
    assert_eq!(unmapped(&sim, calls), [16 * GIB]);
}

#[test]
fn unmaps_are_joined_but_bounded_in_entries() {
    for (setting, calls_of) in [(64, vec![64, 64, 32]), (100, vec![100, 60]), (1, vec![1; 160])] {
        let config = Config { entry_size: 2 * MIB, max_unmap_entries: setting, ..Config::default() };
        let (engine, sim) = open(SimConfig::default(), config);
        engine.map_region(ram(0x100 * MIB, 320 * MIB)).unwrap();
        let calls = sim.calls().len();
        engine.unmap(range(0x100 * MIB, 320 * MIB)).unwrap();
        let entries: Vec<u64> = unmapped(&sim, calls).iter().map(|bytes| bytes / (2 * MIB)).collect();
        assert_eq!(entries, calls_of);
        assert!(sim.mappings().is_empty());
    }
}

#[test]
fn both_ends_of_the_space_take_two_calls() {
    let top = u64::MAX - (PAGE - 1);
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (engine, sim) = open(SimConfig { rules, ..SimConfig::default() }, Config::default());
        let ends =
            [0, top].map(|start| Region { hva: hva(RAM), backing: Backing::UNKNOWN, ..ram(start, PAGE) });
        for region in ends {
            engine.map_region(region).unwrap();
        }
        let calls = sim.calls().len();
        engine.begin().unwrap();
        for region in ends {
            engine.unmap(region.range).unwrap();
        }
        engine.unmap(range(PAGE, top - PAGE)).unwrap();
        engine.commit().unwrap();
        assert_eq!(unmapped(&sim, calls), [PAGE, PAGE], "{rules:?}");
        assert!(sim.mappings().is_empty());
    }
}

/// A device that leaves the domain of a vIOMMU: its pages are unmapped in one piece.
#[test]
fn a_range_over_scattered_entries_takes_few_calls() {
    const PAGES: u64 = 16_384;
    for rules in [Rules::Type1, Rules::Iommufd] {
        for (setting, most) in [(PAGES, 1), (1000, 17), (0, PAGES / 64)] {
            let config = Config { max_unmap_entries: setting, threads: 1, ..Config::default() };
            let (engine, sim) = open(SimConfig { rules, ..SimConfig::default() }, config);
            engine.begin().unwrap();
            for page in 0..PAGES {
                engine.map_region(Region { exact: true, ..ram(3 * page * PAGE, PAGE) }).unwrap();
            }
            engine.commit().unwrap();
            let calls = sim.calls().len();
            assert_eq!(engine.unmap(range(0, GIB)).unwrap(), PAGES * PAGE);
            let made = unmapped(&sim, calls).len() as u64;
            // How far calls grow depends on their time.
            assert!(if setting == 0 { made <= most } else { made == most }, "{rules:?}, {setting}: {made}");
            assert!(sim.mappings().is_empty() && engine.entries().is_empty());
        }
    }
}

#[test]
fn threads_share_calls_for_several_entries() {
    const ENTRIES: u64 = 1024;
    for (setting, most) in [(0, 4 * 4), (10, ENTRIES.div_ceil(10))] {
        let sim = SimConfig { rules: Rules::Iommufd, ..SimConfig::default() };
        let config = Config {
            entry_size: 2 * MIB,
            threads: 4,
            oversubscribe: true,
            max_unmap_entries: setting,
            ..Config::default()
        };
        let (engine, sim) = open(sim, config);
        engine.map_region(ram(2 * MIB, ENTRIES * 2 * MIB)).unwrap();
        let calls = sim.calls().len();
        engine.unmap(range(0, GIB * 4)).unwrap();
        let made = unmapped(&sim, calls);
        assert_eq!(made.len() as u64, most);
        assert!(sim.mappings().is_empty());
    }
    // Large entries take a call each.
    let sim = SimConfig { rules: Rules::Iommufd, ..SimConfig::default() };
    let (engine, sim) = open(sim, Config { threads: 4, oversubscribe: true, ..Config::default() });
    engine.map_region(ram(GIB, 64 * GIB)).unwrap();
    let calls = sim.calls().len();
    engine.unmap(range(GIB, 64 * GIB)).unwrap();
    assert_eq!(unmapped(&sim, calls), [GIB; 64]);
}

#[test]
fn what_is_kept_in_between_is_not_covered() {
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (engine, sim) = open(SimConfig { rules, ..SimConfig::default() }, Config::default());
        scattered(&engine, 5);
        let calls = sim.calls().len();
        // Unmaps everything, and wants the entry in the middle as before.
        engine.begin().unwrap();
        engine.unmap(range(0, 9 * PAGE)).unwrap();
        engine.map_region(ram(4 * PAGE, PAGE)).unwrap();
        engine.commit().unwrap();
        assert_eq!(unmapped(&sim, calls), [3 * PAGE; 2], "{rules:?}");
        assert_eq!(sim.mappings().len(), 1);
    }
}

/// In an IOAS, somebody else's mapping can be in a gap. A call covers it only if the caller unmapped all of that.
#[test]
fn gaps_of_an_ioas_are_covered_only_where_the_caller_unmaps() {
    for (rules, by_page) in [(Rules::Type1, 1), (Rules::Iommufd, 10)] {
        let (engine, sim) = open(SimConfig { rules, ..SimConfig::default() }, Config::default());
        scattered(&engine, 10);
        let calls = sim.calls().len();
        engine.unmap_pages((0..10).map(|n| Iova(2 * n * PAGE))).unwrap();
        assert_eq!(unmapped(&sim, calls).len(), by_page);
        scattered(&engine, 10);
        let calls = sim.calls().len();
        engine.unmap(range(0, 20 * PAGE)).unwrap();
        assert_eq!(unmapped(&sim, calls), [19 * PAGE]);
        assert!(sim.mappings().is_empty());
    }
    let sim = SimConfig { rules: Rules::Iommufd, ..SimConfig::default() };
    let (engine, sim) = open(sim, Config::default());
    scattered(&engine, 2);
    sim.ask_to_map(PAGE, PAGE, hva(RAM), Perm::Read).unwrap();
    engine.unmap_pages([Iova(0), Iova(2 * PAGE)]).unwrap();
    assert_eq!(sim.mappings().len(), 1, "what somebody else mapped is theirs");
}

/// A bitmap covers the gaps too, which can be large.
#[test]
fn no_gap_is_covered_while_dirty_pages_are_tracked() {
    let (engine, sim) = open(SimConfig::default(), Config::default());
    scattered(&engine, 10);
    engine.track_dirty(true).unwrap();
    let calls = sim.calls().len();
    engine.unmap(range(0, 20 * PAGE)).unwrap();
    assert_eq!(unmapped(&sim, calls), [PAGE; 10]);
}

/// iommufd unmaps what comes before the entry that it cannot unmap. The table says which entries are left.
#[test]
fn a_call_that_fails_half_way_leaves_the_table_true() {
    for threads in [1, 4] {
        for busy in [0, 37, 99] {
            let sim = SimConfig { rules: Rules::Iommufd, ..SimConfig::default() };
            let config = Config { entry_size: 2 * MIB, threads, oversubscribe: true, ..Config::default() };
            let (engine, sim) = open(sim, config);
            engine.map_region(ram(2 * MIB, 200 * MIB)).unwrap();
            let at = 2 * MIB + busy * 2 * MIB;
            sim.reconfigure(|config| config.busy.push(at));
            let error = engine.unmap(range(0, GIB)).unwrap_err();
            assert_eq!(error.errno, Errno::EBUSY);
            let left: Vec<u64> = sim.mappings().iter().map(|mapping| mapping.range.start()).collect();
            assert_eq!(left, [at], "everything else is unmapped");
            let table: Vec<u64> = engine.entries().iter().map(|entry| entry.range.start()).collect();
            assert_eq!(table, left);
            sim.reconfigure(|config| config.busy.clear());
            engine.close().unwrap();
            assert!(sim.mappings().is_empty());
        }
    }
}

proptest! {
    #[test]
    fn no_call_is_beyond_its_bounds(
        regions in prop::collection::vec((0u64..4096, 1u64..600), 1..20),
        setting in 1u64..80,
    ) {
        let config = Config { entry_size: 2 * MIB, max_unmap_entries: setting, ..Config::default() };
        let (engine, sim) = open(SimConfig::default(), config);
        for (start, length) in regions {
            // An overlapping region is refused, and so not mapped.
            let _ = engine.map_region(ram(start * MIB, length * MIB));
        }
        let entries = sim.mappings();
        let calls = sim.calls().len();
        engine.unmap(range(0, 1 << 40)).unwrap();
        prop_assert!(sim.mappings().is_empty());
        for call in &sim.calls()[calls..] {
            let Call::Unmap(range) = call else { panic!("a map while unmapping") };
            let inside: Vec<_> = entries.iter().filter(|entry| range.contains(entry.range)).collect();
            prop_assert!((1..=setting).contains(&(inside.len() as u64)), "{} entries in one call", inside.len());
            prop_assert!(inside.iter().map(|entry| entry.range.length()).sum::<u64>() <= 4 * GIB);
        }
    }
}

#[test]
fn little_memory_in_many_entries_is_let_go_of_at_once() {
    let (engine, sim) = open(SimConfig::default(), Config::default());
    scattered(&engine, 1000);
    let calls = sim.calls().len();
    engine.close().unwrap();
    assert_eq!(sim.calls()[calls..], [Call::UnmapAll]);
    assert!(sim.mappings().is_empty());
}

#[test]
fn much_memory_is_let_go_of_in_bounded_calls() {
    let (engine, sim) = open(SimConfig::default(), Config::default());
    engine.map_region(ram(GIB, 64 * GIB)).unwrap();
    let calls = sim.calls().len();
    engine.close().unwrap();
    assert_eq!(unmapped(&sim, calls), [4 * GIB; 16]);
}

#[test]
fn an_engine_that_is_dropped_leaves_nothing() {
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (engine, sim) = open(SimConfig { rules, ..SimConfig::default() }, Config::default());
        scattered(&engine, 3);
        engine.map_region(ram(GIB, GIB)).unwrap();
        drop(engine);
        assert!(sim.mappings().is_empty(), "{rules:?}");
    }
}

#[test]
fn an_ioas_may_have_others_in_it() {
    let (engine, sim) = open(SimConfig { rules: Rules::Iommufd, ..SimConfig::default() }, Config::default());
    scattered(&engine, 100);
    sim.ask_to_map(GIB, PAGE, hva(RAM), Perm::Read).unwrap();
    engine.close().unwrap();
    assert_eq!(sim.mappings().len(), 1, "what somebody else mapped is theirs");
}

#[test]
fn a_kernel_without_that_call_is_asked_for_each_half() {
    let (engine, sim) = open(SimConfig::default(), Config::default());
    scattered(&engine, 10);
    let next = sim.calls().len() as u64 + 1;
    sim.reconfigure(|config| config.failures = vec![(next, Errno::EINVAL)]);
    engine.close().unwrap();
    assert_eq!(sim.calls().len() as u64, next + 2);
    assert!(sim.mappings().is_empty());
}

#[test]
fn a_wrong_number_of_bytes_is_told_at_the_end_too() {
    let (engine, sim) = open(SimConfig::default(), Config::default());
    scattered(&engine, 10);
    assert!(sim.steal(0));
    let calls = sim.calls().len();
    let error = engine.close().unwrap_err();
    assert_eq!(error.kind, ErrorKind::ByteCount { expected: 10 * PAGE, got: 9 * PAGE });
    assert!(error.unfinished.is_none(), "nobody knows what is still mapped: {error}");
    assert_eq!(
        sim.calls().len(),
        calls + 2,
        "what is mapped is not known, so all of it is unmapped once more"
    );
}

/// A list of what is still mapped would be wrong, and everything is unmapped once more.
#[test]
fn a_contradicted_close_names_nothing_as_still_mapped() {
    let (engine, sim) = open(SimConfig::default(), Config::default());
    engine.map_region(ram(GIB, 8 * GIB)).unwrap();
    assert!(sim.steal(2 * GIB));
    let error = engine.close().unwrap_err();
    assert_eq!(error.kind, ErrorKind::ByteCount { expected: 4 * GIB, got: 3 * GIB });
    assert!(error.unfinished.is_none() && sim.mappings().is_empty(), "{error}");
}

#[test]
fn the_style_of_superpages_and_the_longest_call_are_told() {
    let (engine, sim) = open(SimConfig::default(), Config::default());
    engine.map_region(ram(GIB, 8 * GIB)).unwrap();
    assert_eq!(engine.stats().superpages, Superpages::Coarse);
    engine.unmap(range(GIB, 8 * GIB)).unwrap();
    let stats = engine.stats();
    assert!(stats.max_unmap_ns > 0 && stats.max_unmap_ns <= stats.unmap_ns);
    assert_eq!((engine.info().batch.entries, engine.info().batch.bytes), (0, 4 * GIB));
    drop(sim);
}
