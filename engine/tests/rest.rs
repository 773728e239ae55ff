//! What a device sees of other memory while a range is unmapped, by the record of the kernel calls: entries outside the
//! range are not touched, and what a cut entry has outside the range is mapped again before the call returns.

use common::{RAM, Space, drive, engine_with, hva, keeping, ram, range, rules, threads, transactions};
use proptest::prelude::*;
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::Mapping;
use vfio_fast_engine::backend::sim::{Call, Rules, Sim, SimConfig};
use vfio_fast_engine::region::{Backing, Region};
use vfio_fast_engine::{Config, Engine, Errno};
use vfio_fast_testing as common;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const BOTH: [Rules; 2] = [Rules::Type1, Rules::Iommufd];

fn open(rules: Rules, regions: &[Region]) -> (Engine, Sim) {
    let sim = Sim::new(SimConfig { rules, ..SimConfig::default() });
    let engine = Engine::new(Box::new(sim.clone()), Config { threads: 1, ..Config::default() }).unwrap();
    engine.begin().unwrap();
    for region in regions {
        engine.map_region(*region).unwrap();
    }
    engine.commit().unwrap();
    (engine, sim)
}

/// The ranges of the calls since `from`: those unmapped, and then those mapped. Fails if an unmap follows a map.
fn calls(sim: &Sim, from: usize) -> (Vec<IovaRange>, Vec<IovaRange>) {
    let (mut unmaps, mut maps) = (Vec::new(), Vec::new());
    for call in &sim.calls()[from..] {
        match call {
            Call::Unmap(range) => {
                assert!(maps.is_empty(), "{call:?} comes after a map");
                unmaps.push(*range);
            }
            Call::Map(mapping) | Call::MapFile(mapping, ..) => maps.push(mapping.range),
            call => panic!("{call:?}"),
        }
    }
    maps.sort_unstable();
    (unmaps, maps)
}

#[test]
fn only_the_entry_that_is_cut_is_unmapped_and_its_rest_is_mapped_again() {
    for rules in BOTH {
        let exact = Region { exact: true, ..ram(12 * GIB, GIB) };
        let neighbour = Region { join: false, ..ram(8 * GIB, GIB) };
        let (engine, sim) = open(rules, &[ram(4 * GIB, 4 * GIB), neighbour, exact]);
        let before = sim.calls().len();
        let (cut, entry) = (range(6 * GIB + MIB, 2 * MIB), range(6 * GIB, GIB));
        assert_eq!(engine.unmap(cut).unwrap(), 2 * MIB);
        let rest = vec![range(6 * GIB, MIB), range(6 * GIB + 3 * MIB, GIB - 3 * MIB)];
        assert_eq!(calls(&sim, before), (vec![entry], rest), "{rules:?}");
        // In a transaction, which wants a part of it again.
        let before = sim.calls().len();
        engine.begin().unwrap();
        engine.unmap(range(4 * GIB, 2 * GIB)).unwrap();
        engine.map_region(ram(4 * GIB, GIB)).unwrap();
        engine.commit().unwrap();
        assert_eq!(calls(&sim, before), (vec![range(5 * GIB, GIB)], vec![]), "{rules:?}");
        // Exact regions are not cut.
        let before = sim.calls().len();
        assert_eq!(engine.unmap(range(9 * GIB, 3 * GIB + MIB)).unwrap_err().errno, Errno::EINVAL);
        assert_eq!(sim.calls().len(), before);
    }
}

/// Whole regions that are not joined: nothing else is touched, whatever is adjacent.
#[test]
fn a_region_that_is_not_joined_is_unmapped_alone() {
    for rules in BOTH {
        let regions: Vec<Region> =
            (0..64).map(|n| Region { join: false, ..ram(GIB + n * 3 * PAGE, 3 * PAGE) }).collect();
        let (engine, sim) = open(rules, &regions);
        for region in regions.iter().step_by(2).chain(regions.iter().skip(1).step_by(2)) {
            let before = sim.calls().len();
            engine.unmap(region.range).unwrap();
            assert_eq!(calls(&sim, before), (vec![region.range], vec![]), "{rules:?}");
        }
    }
}

/// The kernels refuse to unmap a part of an entry. A program that ignores that, as DPDK did at these addresses, cannot
/// map the part to other memory, and its device keeps on using the old pages.
#[test]
fn a_part_that_is_unmapped_can_be_mapped_to_other_memory() {
    const START: u64 = 0x2000_0020_0000;
    for rules in BOTH {
        let (engine, sim) = open(rules, &[Region { hva: hva(RAM), ..ram(START, 0x1420_0000) }]);
        let part = range(START + 0x80_0000, 0x40_0000);
        assert_eq!(engine.unmap(part).unwrap(), 0x40_0000);
        assert!(sim.mappings().iter().all(|mapping| !mapping.range.overlaps(part)));
        let backing = Backing(2);
        engine.map_region(Region { range: part, hva: hva(1 << 44), backing, ..ram(0, PAGE) }).unwrap();
        let entries: Vec<(u64, u64)> =
            sim.mappings().iter().map(|m| (m.range.start() - START, m.range.length())).collect();
        assert_eq!(entries, [(0, 0x80_0000), (0x80_0000, 0x40_0000), (0xc0_0000, 0x1360_0000)]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn only_entries_that_overlap_the_range_are_touched(
        transactions in transactions(),
        (start, units) in (0..common::UNITS, 1u64..common::UNITS),
        in_transaction in any::<bool>(),
        rules in rules(),
        threads in threads(),
    ) {
        let (engine, sim) = engine_with(threads, keeping(rules));
        let space = Space::new(0);
        for steps in transactions {
            engine.begin().unwrap();
            for step in steps {
                // A step that is an error changes nothing.
                let _ = drive(&engine, &space, step);
            }
            engine.commit().unwrap();
        }
        let gone = space.range(start, units.min(common::UNITS - start));
        let (held, from, remapped) = (sim.mappings(), sim.calls().len(), engine.stats().remapped_bytes);
        if in_transaction {
            engine.begin().unwrap();
        }
        if engine.unmap(gone).is_err() {
            prop_assert_eq!(sim.calls().len(), from, "exact regions are not cut");
            return Ok(());
        }
        if in_transaction {
            engine.commit().unwrap();
        }
        let (unmaps, maps) = calls(&sim, from);
        let (hit, apart): (Vec<Mapping>, Vec<Mapping>) =
            held.into_iter().partition(|mapping| mapping.range.overlaps(gone));
        for mapping in &apart {
            prop_assert!(unmaps.iter().all(|unmap| !unmap.overlaps(mapping.range)), "{mapping:?}");
            prop_assert!(sim.mappings().contains(mapping));
        }
        let mut rests: Vec<IovaRange> = Vec::new();
        for mapping in &hit {
            let (before, after) = mapping.range.without(gone);
            rests.extend(before.into_iter().chain(after));
        }
        let bytes = |ranges: &[IovaRange]| ranges.iter().map(|range| range.length()).sum::<u64>();
        for map in &maps {
            prop_assert!(rests.iter().any(|rest| rest.contains(*map)), "{map} is no rest");
        }
        prop_assert_eq!(bytes(&maps), bytes(&rests), "each rest is mapped again, once");
        prop_assert_eq!(engine.stats().remapped_bytes - remapped, bytes(&rests));
    }
}
