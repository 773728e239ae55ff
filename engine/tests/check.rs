//! Checking an open transaction: it refuses what a commit would refuse, and changes nothing.

use common::memory::time_data;
use common::{hva, ram};
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::sim::{Sim, SimConfig};
use vfio_fast_engine::error::ErrorKind;
use vfio_fast_engine::region::{Backing, Perm, Region};
use vfio_fast_engine::{Config, Engine, Errno, Error};
use vfio_fast_testing as common;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn open(config: SimConfig) -> (Engine, Sim) {
    let sim = Sim::new(config);
    (Engine::new(Box::new(sim.clone()), Config::default()).unwrap(), sim)
}

/// What the check of a transaction that maps `regions` returns. The transaction is aborted.
fn check(engine: &Engine, regions: &[Region]) -> Result<(), Error> {
    engine.begin().unwrap();
    for region in regions {
        engine.map_region(*region).unwrap();
    }
    let checked = engine.check_limits();
    engine.abort().unwrap();
    checked
}

/// The same region as one entry, like a block of virtio-mem.
fn block(region: Region) -> Region {
    Region { exact: true, ..region }
}

#[test]
fn locked_memory_is_checked_however_little_is_mapped() {
    let (engine, sim) = open(SimConfig { memlock_limit: Some(8 * MIB), ..SimConfig::default() });
    engine.map_region(ram(0, 7 * MIB)).unwrap();
    let calls = sim.calls();
    for (bytes, regions) in [
        (16 * MIB, vec![ram(16 * MIB, 16 * MIB)]),
        (2 * MIB, vec![block(ram(16 * MIB, 2 * MIB))]),
        (2 * MIB, vec![block(ram(16 * MIB, MIB)), block(ram(20 * MIB, MIB))]),
    ] {
        let error = check(&engine, &regions).unwrap_err();
        let kind = ErrorKind::Memlock { needed: bytes, locked: 7 * MIB, limit: 8 * MIB };
        assert_eq!((error.errno, error.kind), (Errno::ENOMEM, kind));
    }
    assert_eq!(check(&engine, &[block(ram(16 * MIB, MIB))]), Ok(()));
    assert_eq!(sim.calls(), calls, "a check makes no map or unmap call");
    assert_eq!(engine.regions(), [ram(0, 7 * MIB)]);
}

/// type1 does not count memory that the kernel has no pages for, and so does not the check.
#[test]
fn memory_without_pages_is_not_counted_as_locked() {
    let (start, bytes) = time_data();
    let at = |iova| Region { hva: hva(start), perm: Perm::Read, backing: Backing(7), ..ram(iova, bytes) };
    let check = |regions: &[Region]| {
        let (engine, _sim) = open(SimConfig { memlock_limit: Some(MIB), ..SimConfig::default() });
        engine.begin().unwrap();
        regions.iter().for_each(|region| engine.map_region(*region).unwrap());
        engine.check_limits()
    };
    let many: Vec<Region> = (0..=MIB / bytes).map(|n| at(GIB + n * MIB)).collect();
    check(&many).unwrap();
    // The other memory counts, and only that is told.
    let error = check(&[&many[..], &[ram(0, 2 * MIB)]].concat()).unwrap_err();
    assert_eq!(error.needed_and_available(), Some((2 * MIB, MIB)));
}

#[test]
fn entries_and_addresses_are_checked() {
    let valid = IovaRange::from_bounds(0, 64 * MIB - 1).unwrap();
    let (engine, sim) = open(SimConfig { dma_avail: 2, iova_ranges: vec![valid], ..SimConfig::default() });
    let blocks = [0, 2, 4].map(|at| block(ram(at * MIB, MIB)));
    let error = check(&engine, &blocks).unwrap_err();
    assert_eq!(error.errno, Errno::ENOSPC);
    assert_eq!(error.needed_and_available(), Some((3, 2)));
    assert_eq!(check(&engine, &blocks[..2]), Ok(()));

    let error = check(&engine, &[ram(48 * MIB, 32 * MIB)]).unwrap_err();
    assert_eq!((error.errno, error.kind), (Errno::EINVAL, ErrorKind::OutsideIova { valid: vec![valid] }));
    assert_eq!(sim.calls(), []);
}

#[test]
fn a_checked_transaction_can_be_committed() {
    let (engine, sim) = open(SimConfig { memlock_limit: Some(8 * MIB), ..SimConfig::default() });
    assert_eq!(engine.check_limits().unwrap_err().errno, Errno::EINVAL, "no transaction is open");
    engine.map_region(ram(0, 8 * MIB)).unwrap();
    // What the transaction unmaps no longer counts.
    engine.begin().unwrap();
    engine.check_limits().unwrap();
    engine.unmap(ram(0, 8 * MIB).range).unwrap();
    engine.map_region(ram(16 * MIB, 8 * MIB)).unwrap();
    engine.check_limits().unwrap();
    engine.commit().unwrap();
    let held: Vec<IovaRange> = sim.mappings().iter().map(|mapping| mapping.range).collect();
    assert_eq!(held, [ram(16 * MIB, 8 * MIB).range]);
}
