//! Device regions are optional: a commit maps its RAM first, and what the kernel does not map of them fails no commit.
//! An error that says something else than that fails it.

use common::{engine, hva, keeping, ram, range};
use vfio_fast_engine::Errno;
use vfio_fast_engine::backend::sim::{Call, Rules, SimConfig};
use vfio_fast_engine::error::{ErrorKind, Op};
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_testing as common;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A BAR below all RAM of these tests.
fn bar(bytes: u64) -> Region {
    Region { kind: Kind::Device, hva: hva(0x6000_0000_0000), backing: Backing(9), ..ram(0, bytes) }
}

#[test]
fn ram_gets_the_last_entries() {
    for (dma_avail, refused) in [(1, 1), (2, 1), (3, 0)] {
        // The BAR takes two entries, also on the coarsest grid.
        let (engine, sim) = engine(SimConfig { dma_avail, ..keeping(Rules::Type1) });
        engine.begin().unwrap();
        engine.map_region(bar(2 * MIB)).unwrap();
        engine.map_region(ram(4 * MIB, 2 * MIB)).unwrap();
        let outcome = engine.commit().unwrap();
        assert_eq!(outcome.executed.refusals.len(), refused, "{dma_avail} entries");
        for refusal in outcome.executed.refusals {
            assert_eq!((refusal.region, refusal.errno), (bar(2 * MIB).range, Errno::ENOSPC));
            assert_eq!(sim.mappings().len(), 1, "a region is mapped as a whole or not at all");
        }
        assert!(sim.mappings().iter().any(|mapping| mapping.range == range(4 * MIB, 2 * MIB)));
        common::assert_table(&engine, &sim);
    }
}

#[test]
fn a_bar_alone_without_an_entry_is_told_with_numbers() {
    let (engine, sim) = engine(SimConfig { dma_avail: 2, ..keeping(Rules::Type1) });
    engine.map_region(ram(4 * MIB, 2 * MIB)).unwrap();
    let error = engine.map_region(bar(2 * MIB)).unwrap_err();
    assert_eq!((error.op, error.errno, error.needed_and_available()), (Op::Map, Errno::ENOSPC, Some((2, 1))));
    assert_eq!((engine.regions().len(), sim.mappings().len()), (1, 1));
}

#[test]
fn what_is_wrong_for_ram_too_fails_the_commit() {
    for rules in [Rules::Type1, Rules::Iommufd] {
        for errno in [libc::EEXIST, libc::EBADF, libc::ENOMEM, libc::EBUSY, libc::EINTR].map(Errno) {
            let (engine, sim) = engine(SimConfig { failures: vec![(2, errno)], ..keeping(rules) });
            engine.begin().unwrap();
            engine.map_region(bar(MIB)).unwrap();
            engine.map_region(ram(GIB, MIB)).unwrap();
            let error = engine.commit().unwrap_err();
            assert_eq!((error.op, error.errno), (Op::Map, errno), "{rules:?}");
            assert_eq!((engine.regions().len(), sim.mappings().len()), (0, 0), "{rules:?} {errno}");
            assert!(!engine.info().poisoned);
        }
    }
}

#[test]
fn another_users_mapping_where_a_bar_is_wanted_is_an_error() {
    let (engine, sim) = engine(keeping(Rules::Type1));
    sim.ask_to_map(0, 4096, hva(0x1000), Perm::ReadWrite).unwrap();
    engine.begin().unwrap();
    engine.map_region(bar(MIB)).unwrap();
    let error = engine.commit().unwrap_err();
    assert_eq!((error.errno, &error.kind), (Errno::EEXIST, &ErrorKind::Foreign), "{error}");
    assert!(engine.regions().is_empty());
}

#[test]
fn ram_is_mapped_first_also_in_order() {
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (engine, sim) = engine(keeping(rules));
        engine.begin().unwrap();
        engine.map_region(bar(MIB)).unwrap();
        engine.map_region(ram(GIB, MIB)).unwrap();
        engine.commit().unwrap();
        let Call::Map(first) = sim.calls()[0] else { panic!("{:?}", sim.calls()) };
        assert_eq!(first.range, range(GIB, MIB), "{rules:?}");
    }
}
