//! Mapping memory again whose pages were replaced: every entry of it, each once, and nothing else.

use common::{hva, ram};
use vfio_fast_engine::backend::sim::{Call, Rules, Sim, SimConfig};
use vfio_fast_engine::error::ErrorKind;
use vfio_fast_engine::region::Region;
use vfio_fast_engine::{Config, Engine, Errno};
use vfio_fast_testing as common;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const PAGE: u64 = 4096;

fn open(config: SimConfig) -> (Engine, Sim) {
    let sim = Sim::new(config);
    (Engine::new(Box::new(sim.clone()), Config::default()).unwrap(), sim)
}

#[test]
fn every_entry_of_the_memory_is_mapped_again() {
    let (engine, sim) = open(SimConfig::default());
    let low = ram(0, 2 * GIB);
    // The same memory at another address, as a vIOMMU maps it, and other memory.
    let leaf = Region { range: common::range(16 * GIB, 2 * MIB), exact: true, ..low };
    let other = ram(32 * GIB, GIB);
    for region in [low, leaf, other] {
        engine.map_region(region).unwrap();
    }
    let (entries, regions, before) = (engine.entries(), engine.regions(), sim.calls().len());

    let page = hva(low.hva.raw() + MIB);
    assert_eq!(engine.remap(page, PAGE).unwrap(), GIB + 2 * MIB);
    assert_eq!(engine.entries(), entries);
    assert_eq!(engine.regions(), regions);
    let calls = sim.calls().split_off(before);
    let unmaps = calls.iter().filter(|call| matches!(call, Call::Unmap(_))).count();
    assert_eq!((unmaps, calls.len()), (2, 4), "{calls:?}");

    // The first and the last byte of an entry count, those beside it do not.
    assert_eq!(engine.remap(hva(low.hva.raw() + GIB), 1).unwrap(), GIB);
    assert_eq!(engine.remap(hva(low.hva.raw() + 2 * GIB - 1), 1).unwrap(), GIB);
    assert_eq!(engine.remap(hva(low.hva.raw() + GIB - PAGE), PAGE).unwrap(), GIB);
    assert_eq!(engine.remap(hva(low.hva.raw() + GIB - PAGE), 2 * PAGE).unwrap(), 2 * GIB);
    assert_eq!(engine.remap(hva(other.hva.raw() + GIB), PAGE).unwrap(), 0);
    assert_eq!(engine.entries(), entries);
}

#[test]
fn what_cannot_be_mapped_again_is_an_error() {
    let (engine, sim) = open(SimConfig::default());
    let low = ram(0, 4 * MIB);
    engine.map_region(low).unwrap();
    assert_eq!(engine.remap(low.hva, 0).unwrap_err().errno, Errno::EINVAL);
    engine.begin().unwrap();
    assert_eq!(engine.remap(low.hva, PAGE).unwrap_err().errno, Errno::EBUSY);
    engine.abort().unwrap();

    // The first map call fails, the one of the rollback does not.
    let next = sim.calls().len() as u64 + 2;
    sim.reconfigure(|config| config.failures = vec![(next, Errno::EFAULT)]);
    let error = engine.remap(low.hva, PAGE).unwrap_err();
    assert_eq!(error.errno, Errno::EFAULT);
    assert_eq!(engine.entries().len(), 1);
    assert_eq!(sim.mappings().len(), 1);
    assert!(!engine.info().poisoned);
}

/// A part of an entry is no longer wanted, and stays mapped because its rests would be an entry too many. If such an
/// entry were unmapped, what is wanted of it could not be mapped again.
#[test]
fn nothing_is_unmapped_that_does_not_fit_again() {
    let (engine, sim) = open(SimConfig { dma_avail: 1, ..SimConfig::default() });
    let low = ram(0, 4 * MIB);
    engine.map_region(low).unwrap();
    assert_eq!(engine.unmap(common::range(MIB, MIB)).unwrap_err().errno, Errno::ENOSPC);
    let (entries, mappings) = (engine.entries(), sim.mappings());

    let error = engine.remap(low.hva, PAGE).unwrap_err();
    assert_eq!((error.errno, error.needed_and_available()), (Errno::ENOSPC, Some((2, 1))), "{error}");
    assert_eq!((engine.entries(), sim.mappings()), (entries, mappings), "it had to stay");
    assert_eq!(engine.info().missing_bytes, 0);
    // One for the unmap, one for this.
    assert_eq!(engine.stats().preflight_refusals, 2);

    sim.reconfigure(|config| config.dma_avail = 2);
    assert_eq!(engine.remap(low.hva, PAGE).unwrap(), 3 * MIB);
    assert_eq!(sim.mappings().len(), 2);
    assert_eq!(engine.info().leftover_entries, 0);
}

#[test]
fn nothing_is_unmapped_that_a_lower_limit_of_locked_memory_refuses() {
    let (engine, sim) = open(SimConfig { memlock_limit: Some(16 * MIB), ..SimConfig::default() });
    let low = ram(0, 8 * MIB);
    engine.map_region(low).unwrap();
    sim.reconfigure(|config| config.memlock_limit = Some(4 * MIB));
    let before = sim.calls().len();
    let error = engine.remap(low.hva, PAGE).unwrap_err();
    assert_eq!(error.errno, Errno::ENOMEM, "{error}");
    assert_eq!((sim.calls().len(), sim.mappings().len()), (before, 1), "it had to stay");
    sim.reconfigure(|config| config.memlock_limit = Some(8 * MIB));
    assert_eq!(engine.remap(low.hva, PAGE).unwrap(), 8 * MIB);
}

#[test]
fn what_another_user_has_unmapped_poisons() {
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (engine, sim) = open(SimConfig { rules, ..SimConfig::default() });
        for region in [ram(0, GIB), ram(4 * GIB, GIB)] {
            engine.map_region(region).unwrap();
        }
        assert!(sim.steal(0));
        let error = engine.remap(ram(0, 1).hva, 5 * GIB).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ByteCount { expected: GIB, got: 0 });
        assert!(engine.info().poisoned, "{rules:?}: the table has an entry that the kernel does not have");
    }
}
