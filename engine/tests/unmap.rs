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
        Call::Map(_) | Call::MapFile(..) | Call::UnmapAll | Call::ReadDirty(_) => {
            panic!("{call:?} while unmapping")
        }
    };
    sim.calls()[from..].iter().map(length).collect()
}

/// Maps pages with a gap after each.
fn scattered(engine: &Engine, pages: u64) {
    let pages = (0..pages).map(|n| (Iova(2 * n * PAGE), hva(RAM + 2 * n * PAGE)));
    engine.map_pages(pages, Perm::ReadWrite, Backing(1)).unwrap();
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
    let none = Config { max_unmap_entries: 0, ..Config::default() };
    let refused = Engine::new(Box::new(Sim::new(SimConfig::default())), none).unwrap_err();
    assert_eq!(refused.errno, Errno::EINVAL);
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
            let inside = entries.iter().filter(|entry| range.contains(entry.range)).count() as u64;
            prop_assert!((1..=setting).contains(&inside), "{inside} entries in one call");
            prop_assert!(range.length() <= 4 * GIB);
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
    assert_eq!(sim.calls().len(), calls + 1, "nothing is left to be tried again");
}

#[test]
fn the_style_of_superpages_and_the_longest_call_are_told() {
    let (engine, sim) = open(SimConfig::default(), Config::default());
    engine.map_region(ram(GIB, 8 * GIB)).unwrap();
    assert_eq!(engine.stats().superpages, Superpages::Coarse);
    engine.unmap(range(GIB, 8 * GIB)).unwrap();
    let stats = engine.stats();
    assert!(stats.max_unmap_ns > 0 && stats.max_unmap_ns <= stats.unmap_ns);
    assert_eq!((engine.info().batch.entries, engine.info().batch.bytes), (64, 4 * GIB));
    drop(sim);
}
