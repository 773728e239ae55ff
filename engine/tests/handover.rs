//! Handing entries over to another process: every entry stays mapped, in its size, and only what differs is changed. The
//! two processes are two engines on one model of the kernel.

use std::sync::Mutex;

use common::{hva, ram, range};
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::sim::{Call, Rules, Sim, SimConfig};
use vfio_fast_engine::error::ErrorKind;
use vfio_fast_engine::region::{Kind, Perm, Region};
use vfio_fast_engine::{Config, Engine, Errno};
use vfio_fast_testing as common;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// How far the host addresses of the new process are from those of the old one.
const MOVED: u64 = 1 << 45;

fn engine(sim: &Sim) -> Engine {
    Engine::new(Box::new(sim.clone()), Config::default()).unwrap()
}

fn old(rules: Rules) -> (Engine, Sim) {
    let sim = Sim::new(SimConfig { rules, ..SimConfig::default() });
    (engine(&sim), sim)
}

/// The regions of a guest: memory that has grown since the first commit, an exact block, and a BAR.
fn regions() -> [Region; 4] {
    let joined = |region| Region { join: true, ..region };
    [
        joined(ram(0, 3 * GIB)),
        joined(ram(3 * GIB, GIB)),
        Region { exact: true, ..ram(16 * GIB, 2 * MIB) },
        Region { kind: Kind::Device, ..ram(32 * GIB, MIB) },
    ]
}

fn moved(region: Region) -> Region {
    Region { hva: hva(region.hva.raw() + MOVED), ..region }
}

fn list(engine: &Engine) -> Vec<(IovaRange, Perm)> {
    engine.entries().iter().map(|entry| (entry.range, entry.perm)).collect()
}

/// Maps the regions one by one, so that the entries are not those of one commit.
fn map(engine: &Engine, regions: &[Region]) {
    for region in regions {
        engine.map_region(*region).unwrap();
    }
}

fn want(engine: &Engine, regions: &[Region]) {
    engine.begin().unwrap();
    for region in regions {
        engine.map_region(moved(*region)).unwrap();
    }
}

fn changes(calls: &[Call]) -> usize {
    calls.iter().filter(|call| !matches!(call, Call::DropAddresses(_) | Call::SetAddress(_))).count()
}

#[test]
fn every_entry_is_taken_over_in_its_size() {
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (old, sim) = old(rules);
        map(&old, &regions());
        let (held, before) = (list(&old), sim.calls().len());
        old.suspend().unwrap();
        assert_eq!(sim.without_address().len(), if rules == Rules::Type1 { held.len() } else { 0 });

        let new = engine(&sim);
        want(&new, &regions());
        let outcome = new.adopt(held.clone()).unwrap();
        assert_eq!(outcome.kept_entries, held.len() as u64);
        assert_eq!(list(&new), held);
        assert!(new.entries().iter().all(|entry| entry.hva.raw() >= MOVED));
        assert!(sim.without_address().is_empty());
        assert_eq!(changes(&sim.calls()[before..]), 0, "{rules:?}: {:?}", &sim.calls()[before..]);

        // The old process ends, and the new one goes on as if it had mapped everything itself.
        old.close().unwrap();
        drop(old);
        assert_eq!(sim.mappings().len(), held.len());
        assert_eq!(new.unmap(range(16 * GIB, 2 * MIB)).unwrap(), 2 * MIB);
        assert_eq!(new.unmap(range(3 * GIB, GIB)).unwrap(), GIB);
        new.close().unwrap();
        assert!(sim.mappings().is_empty());
    }
}

#[test]
fn only_the_difference_is_changed() {
    let (old, sim) = old(Rules::Type1);
    let [low, high, block, bar] = regions();
    map(&old, &[low, high, block, bar]);
    let (held, before) = (list(&old), sim.calls().len());
    old.suspend().unwrap();

    // The new process does not want the block, wants a BAR elsewhere, and may not write to `high`.
    let new = engine(&sim);
    let bar = Region { range: range(40 * GIB, MIB), ..bar };
    want(&new, &[low, Region { perm: Perm::Read, ..high }, bar]);
    new.adopt(held).unwrap();
    let calls = sim.calls().split_off(before);
    let unmaps = calls.iter().filter(|call| matches!(call, Call::Unmap(_))).count();
    let maps = calls.iter().filter(|call| matches!(call, Call::Map(_))).count();
    assert_eq!((unmaps > 0, maps), (true, 2), "{calls:?}");
    assert_eq!(calls.iter().filter(|call| matches!(call, Call::SetAddress(_))).count(), 3, "{calls:?}");
    assert!(sim.without_address().is_empty());
    let entries: Vec<_> = sim.mappings().iter().map(|mapping| (mapping.range, mapping.perm)).collect();
    assert_eq!(entries, list(&new));
    assert_eq!(new.info().leftover_entries, 0);
}

#[test]
fn an_entry_of_other_memory_is_not_kept() {
    let low = Region { join: true, ..ram(0, GIB) };
    let half =
        |start, offset| Region { range: range(start, GIB / 2), hva: hva(low.hva.raw() + offset), ..low };
    let (first, second) = (half(0, 0), half(GIB / 2, GIB / 2));
    // The second half is other memory, must not be joined, or is not there; or the first half is not.
    let changed: [(&[Region], u64); 5] = [
        (&[first, second], 1),
        (&[first, half(GIB / 2, GIB)], 0),
        (&[first, Region { join: false, ..second }], 0),
        (&[first], 0),
        (&[second], 0),
    ];
    for (regions, kept) in changed {
        let (old, sim) = old(Rules::Type1);
        old.map_region(low).unwrap();
        old.suspend().unwrap();
        let new = engine(&sim);
        want(&new, regions);
        assert_eq!(new.adopt(list(&old)).unwrap().kept_entries, kept, "{regions:?}");
        let held: Vec<_> = sim.mappings().iter().map(|mapping| (mapping.range, mapping.hva)).collect();
        assert_eq!(held, new.entries().iter().map(|entry| (entry.range, entry.hva)).collect::<Vec<_>>());
        let set = sim.calls().iter().filter(|call| matches!(call, Call::SetAddress(_))).count();
        assert_eq!(set as u64, kept, "an entry of other memory has no host address here");
        let bytes: u64 = regions.iter().map(|region| region.range.length()).sum();
        assert_eq!(held.iter().map(|(range, _)| range.length()).sum::<u64>(), bytes);
    }
}

#[test]
fn what_is_left_to_a_job_is_not_handed_over() {
    let (old, sim) = old(Rules::Type1);
    let old = std::sync::Arc::new(old);
    sim.reconfigure(|config| config.failures = vec![(1, Errno::ENOMEM)]);
    old.begin().unwrap();
    old.map_region(ram(0, GIB)).unwrap();
    old.commit_background().unwrap();
    old.wait(None, None).unwrap_err();
    assert_eq!(old.suspend().unwrap_err().errno, Errno::EBUSY);
}

#[test]
fn a_suspended_engine_changes_nothing() {
    let (old, sim) = old(Rules::Type1);
    map(&old, &regions());
    old.begin().unwrap();
    assert_eq!(old.suspend().unwrap_err().errno, Errno::EBUSY);
    old.abort().unwrap();
    old.track_dirty(true).unwrap();
    assert_eq!(old.suspend().unwrap_err().errno, Errno::EBUSY);
    old.track_dirty(false).unwrap();
    assert_eq!(old.resume().unwrap_err().errno, Errno::EINVAL);
    old.suspend().unwrap();

    let (held, before) = (sim.mappings(), sim.calls().len());
    let everything = [
        old.suspend().unwrap_err(),
        old.begin().unwrap_err(),
        old.map_region(ram(64 * GIB, MIB)).unwrap_err(),
        old.unmap(range(0, 3 * GIB)).unwrap_err(),
        old.retry_unmap().unwrap_err(),
        old.remap(ram(0, 1).hva, 1).unwrap_err(),
        old.track_dirty(true).unwrap_err(),
    ];
    for error in everything {
        assert_eq!((error.errno, error.kind), (Errno::EBUSY, ErrorKind::Suspended));
    }
    old.track_dirty(false).unwrap();
    old.poison("a test");
    old.close().unwrap();
    assert_eq!((sim.mappings(), sim.calls().len()), (held, before), "closing unmaps nothing");
}

#[test]
fn a_failed_handover_is_taken_back() {
    let (old, sim) = old(Rules::Type1);
    map(&old, &regions());
    let (held, mappings) = (list(&old), sim.mappings());
    old.suspend().unwrap();

    for failing in 1..=held.len() as u64 {
        let new = engine(&sim);
        want(&new, &regions());
        let next = sim.calls().len() as u64 + failing;
        sim.reconfigure(|config| config.failures = vec![(next, Errno::ENOMEM)]);
        assert_eq!(new.adopt(held.clone()).unwrap_err().errno, Errno::ENOMEM);
        assert!(new.entries().is_empty() && new.regions().is_empty());
        assert_eq!(sim.without_address().len(), held.len(), "call {failing}");
        new.close().unwrap();
        assert_eq!(sim.mappings().len(), held.len());
    }

    // A map call of the difference fails: what was mapped before it is unmapped again.
    let new = engine(&sim);
    let more = [ram(64 * GIB, MIB), ram(65 * GIB, MIB)];
    want(&new, &[regions().as_slice(), more.as_slice()].concat());
    let next = (sim.calls().len() + held.len()) as u64 + 2;
    sim.reconfigure(|config| config.failures = vec![(next, Errno::EFAULT)]);
    assert_eq!(new.adopt(held.clone()).unwrap_err().errno, Errno::EFAULT);
    assert_eq!(sim.without_address().len(), held.len());
    assert_eq!(sim.mappings().len(), held.len());
    drop(new);

    // It cannot be unmapped: the error names it, and it is tried again.
    let new = engine(&sim);
    want(&new, &[regions().as_slice(), more.as_slice()].concat());
    let next = (sim.calls().len() + held.len()) as u64 + 2;
    sim.reconfigure(|config| config.failures = vec![(next, Errno::EFAULT), (next + 1, Errno::EBUSY)]);
    let unfinished = new.adopt(held.clone()).unwrap_err().unfinished.unwrap();
    assert_eq!((unfinished.leftover, unfinished.refused), (vec![more[0].range], Some(Errno::EBUSY)));
    assert_eq!((new.info().leftover_entries, sim.mappings().len()), (1, held.len() + 1));
    new.close().unwrap();
    assert_eq!((sim.without_address().len(), sim.mappings().len()), (held.len(), held.len()));
    drop(new);

    // A process that ended while it adopted has set some of the addresses.
    let killed = engine(&sim);
    want(&killed, &regions());
    killed.adopt(held.clone()).unwrap();
    // It is never dropped, but not leaked either.
    static KILLED: Mutex<Option<Engine>> = Mutex::new(None);
    *KILLED.lock().unwrap() = Some(killed);
    old.resume().unwrap();
    assert_eq!((list(&old), sim.mappings()), (held, mappings));
    assert!(sim.without_address().is_empty());
    old.unmap(range(16 * GIB, 2 * MIB)).unwrap();
}

#[test]
fn entries_that_nobody_handed_over_are_refused() {
    let (old, sim) = old(Rules::Type1);
    map(&old, &regions());
    let held = list(&old);
    let adopt = |entries: Vec<(IovaRange, Perm)>| {
        let new = engine(&sim);
        want(&new, &regions());
        let error = new.adopt(entries).unwrap_err();
        new.close().unwrap();
        error
    };
    old.suspend().unwrap();
    let twice = adopt([held.clone(), vec![held[0]]].concat());
    assert_eq!((twice.errno, twice.kind), (Errno::EINVAL, ErrorKind::Overlap { with: held[0].0 }));
    // An entry of another size, and one that the kernel does not have.
    let cut = adopt(vec![(range(0, GIB / 2), Perm::ReadWrite)]);
    assert_eq!((cut.errno, cut.kind), (Errno::EINVAL, ErrorKind::NotHandedOver));
    sim.steal(held[0].0.start());
    let gone = adopt(held.clone());
    assert_eq!((gone.errno, gone.kind), (Errno::ENOENT, ErrorKind::NotHandedOver));
    assert_eq!(sim.mappings().len(), held.len() - 1, "nothing was unmapped");

    // One that is not wanted is gone: the unmap contradicts the list. The engine is not poisoned, because closing it would
    // then unmap everything.
    let doubted = engine(&sim);
    want(&doubted, &regions()[1..]);
    let error = doubted.adopt(held.clone()).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::ByteCount { .. }), "{error}");
    doubted.begin().unwrap();
    let exact = Region { exact: true, ..ram(0, MIB) };
    doubted.map_region(exact).unwrap();
    let next = sim.calls().len() as u64 + 1;
    sim.reconfigure(|config| config.failures = vec![(next, Errno::EFAULT)]);
    doubted.commit().unwrap_err();
    assert!(!doubted.info().poisoned);
    doubted.close().unwrap();
    assert!(sim.mappings().len() >= 3, "{:?}", sim.mappings());

    let used = engine(&sim);
    used.map_region(ram(64 * GIB, MIB)).unwrap();
    used.begin().unwrap();
    assert_eq!(used.adopt(held).unwrap_err().errno, Errno::EBUSY);
}
