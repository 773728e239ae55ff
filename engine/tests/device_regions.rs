//! Device regions are optional: a commit maps its RAM first, and what the kernel does not map of them fails no commit.
//! An error that says something else than that fails it.

use common::hooked::{Hooked, Hooks};
use common::memory::time_data;
use common::{RAM, engine, hva, keeping, ram, range};
use vfio_fast_engine::addr::Iova;
use vfio_fast_engine::backend::sim::{Call, Rules, Sim, SimConfig};
use vfio_fast_engine::error::{ErrorKind, Op};
use vfio_fast_engine::limits::Memlock;
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Engine, Errno};
use vfio_fast_testing as common;

const PAGE: u64 = 4096;
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

/// A kernel that does not count BARs, as the real ones: it has this much locked, and this limit.
struct Locked(u64, u64);

impl Hooks for Locked {
    fn memlock(&self, of_kernel: Memlock) -> Memlock {
        Memlock { locked: self.0, limit: Some(self.1), ..of_kernel }
    }
}

fn engine_with(locked: u64, limit: u64, rules: Rules) -> (Engine, Sim) {
    let sim = Sim::new(keeping(rules));
    let backend = Hooked { kernel: Box::new(sim.clone()), hooks: Locked(locked, limit) };
    (Engine::new(Box::new(backend), Config::default()).unwrap(), sim)
}

#[test]
fn bars_do_not_count_as_locked_memory() {
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (engine, sim) = engine_with(0, 12 * MIB, rules);
        engine.begin().unwrap();
        engine.map_region(bar(16 * MIB)).unwrap();
        engine.map_region(ram(GIB, 8 * MIB)).unwrap();
        engine.commit().unwrap();
        assert_eq!(sim.locked(), 24 * MIB, "both are mapped");
    }
}

#[test]
fn unmapping_a_bar_makes_no_room_for_locked_memory() {
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (engine, sim) = engine_with(8 * MIB, 12 * MIB, rules);
        engine.map_region(bar(16 * MIB)).unwrap();
        let calls = sim.calls();
        engine.begin().unwrap();
        engine.unmap(bar(16 * MIB).range).unwrap();
        engine.map_region(ram(GIB, 8 * MIB)).unwrap();
        let error = engine.commit().unwrap_err();
        assert_eq!((error.op, error.errno), (Op::Check, Errno::ENOMEM), "{rules:?}");
        assert!(sim.calls()[calls.len()..].iter().all(|call| matches!(call, Call::Unmap(_))), "{rules:?}");
    }
}

/// Memory that turns out to be device memory, in an array that is mapped outside a transaction: there is no outcome to
/// report it in, so nothing of the array stays mapped.
#[test]
fn a_refused_page_takes_its_array_back() {
    let (start, bytes) = time_data();
    for rules in [Rules::Type1, Rules::Iommufd] {
        let unmappable = vec![(start, start + bytes - 1)];
        let (engine, sim) = engine(SimConfig { unmappable, ..keeping(rules) });
        let tracks = rules == Rules::Type1;
        if tracks {
            engine.track_dirty(true).unwrap();
        }
        let pages = [(Iova(0), hva(RAM)), (Iova(MIB), hva(start))];
        let error = engine.map_pages(pages, Perm::Read, Backing::UNKNOWN, true).unwrap_err();
        assert_eq!((error.op, error.errno, error.range), (Op::Map, Errno::EFAULT, Some(range(MIB, PAGE))));
        assert_eq!(sim.mappings(), [], "{rules:?}");
        assert!(sim.calls().contains(&Call::Unmap(range(0, PAGE))), "the other page was mapped before");
        common::assert_table(&engine, &sim);
        let stats = engine.stats();
        assert_eq!((engine.regions().len(), stats.regions, stats.wanted_bytes), (0, 0, 0));
        // The model says that every page it unmaps is dirty. That is nothing to the memory that is mapped there next.
        sim.reconfigure(|config| config.all_dirty = false);
        engine.map_region(ram(0, PAGE)).unwrap();
        let mut dirty = [0];
        if tracks {
            engine.read_dirty(range(0, PAGE), &mut dirty).unwrap();
        }
        assert_eq!(dirty, [0]);
    }
}
