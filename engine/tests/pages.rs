//! Arrays of pages: grouped into runs, mapped as a whole or not at all, and unmapped page by page.

use std::collections::BTreeMap;
use vfio_fast_testing as common;

use common::{assert_table, engine, hva, keeping, rules};
use proptest::prelude::*;
use vfio_fast_engine::addr::{HostVa, Iova, IovaRange};
use vfio_fast_engine::backend::sim::{Call, Rules, Sim, SimConfig};
use vfio_fast_engine::error::{ErrorKind, Op};
use vfio_fast_engine::region::{Backing, Perm};
use vfio_fast_engine::{Engine, Errno};

const PAGE: u64 = 4096;
const MEMORY: u64 = 0x7000_0000_0000;
const PAGES: u64 = 64;
const INJECTED: Errno = Errno(libc::EREMOTEIO);

fn iova(page: u64) -> Iova {
    Iova(page * PAGE)
}

/// Converts page numbers (device, host) to addresses.
fn addresses(pages: &[(u64, u64)]) -> Vec<(Iova, HostVa)> {
    pages.iter().map(|&(device, host)| (iova(device), hva(MEMORY + host * PAGE))).collect()
}

fn same(pages: &[u64]) -> Vec<(u64, u64)> {
    pages.iter().map(|&page| (page, page)).collect()
}

fn map(engine: &Engine, pages: &[(u64, u64)]) -> vfio_fast_engine::Result<()> {
    engine.map_pages(addresses(pages), Perm::ReadWrite, Backing::UNKNOWN, false)
}

fn unmap(engine: &Engine, pages: &[u64]) -> vfio_fast_engine::Result<u64> {
    engine.unmap_pages(pages.iter().map(|&page| iova(page)))
}

/// Each mapping as its first page and its number of pages.
fn held(sim: &Sim) -> Vec<(u64, u64)> {
    let pages = |range: IovaRange| (range.start() / PAGE, range.length() / PAGE);
    sim.mappings().iter().map(|mapping| pages(mapping.range)).collect()
}

/// The host page at each page of the device.
fn seen(sim: &Sim) -> BTreeMap<u64, u64> {
    let mut seen = BTreeMap::new();
    for mapping in sim.mappings() {
        let (first, host) = (mapping.range.start() / PAGE, (mapping.hva.raw() - MEMORY) / PAGE);
        seen.extend((0..mapping.range.length() / PAGE).map(|page| (first + page, host + page)));
    }
    seen
}

fn calls(sim: &Sim) -> (usize, usize) {
    let maps = sim.calls().iter().filter(|call| matches!(call, Call::Map(_))).count();
    (maps, sim.calls().len() - maps)
}

#[test]
fn contiguous_pages_are_one_call() {
    let (engine, sim) = engine(SimConfig::default());
    map(&engine, &same(&[1, 5, 6, 7, 9])).unwrap();
    assert_eq!(held(&sim), [(1, 1), (5, 3), (9, 1)]);
    assert_eq!(calls(&sim), (3, 0));
    assert_eq!(unmap(&engine, &[5, 6, 7]).unwrap(), 3 * PAGE);
    assert_eq!(calls(&sim), (3, 1));
    // One call unmaps adjacent entries, too.
    map(&engine, &[(5, 25), (6, 24), (7, 23)]).unwrap();
    assert_eq!((held(&sim).len(), calls(&sim)), (5, (6, 1)));
    assert_eq!(unmap(&engine, &[5, 6, 7]).unwrap(), 3 * PAGE);
    assert_eq!((held(&sim), calls(&sim)), (vec![(1, 1), (9, 1)], (6, 2)));
    let (stats, commits) = (engine.stats(), 4);
    assert_eq!((stats.commits, stats.map_bytes, stats.remapped_bytes), (commits, 8 * PAGE, 0));
}

#[test]
fn scattered_pages_take_no_plan() {
    let (engine, sim) = engine(SimConfig::default());
    map(&engine, &[(1, 11), (3, 33), (8, 2)]).unwrap();
    assert_eq!((engine.stats().plan_ns, engine.stats().commits, calls(&sim)), (0, 1, (3, 0)));
    assert_table(&engine, &sim);
    // Two adjacent pages can be more than one entry, which a plan finds out.
    map(&engine, &[(20, 11), (30, 33), (31, 34)]).unwrap();
    assert_ne!(engine.stats().plan_ns, 0);

    // One that the kernel refuses takes the others with it.
    let planned = engine.stats().plan_ns;
    let second = sim.calls().len() as u64 + 2;
    sim.reconfigure(|config| config.failures = vec![(second, INJECTED)]);
    let error = map(&engine, &same(&[40, 42, 44])).unwrap_err();
    assert_eq!((error.op, error.errno, error.range.unwrap().start()), (Op::Map, INJECTED, 42 * PAGE));
    assert_eq!(engine.stats().plan_ns, planned);
    assert_eq!((held(&sim).len(), engine.stats().failed_commits), (5, 1));
    assert_table(&engine, &sim);
}

#[test]
fn pages_of_several_runs_are_joined_only_on_request() {
    let calls_of = |pages: &[&[u64]], join, backing| {
        let (engine, sim) = engine(SimConfig::default());
        engine.begin().unwrap();
        for pages in pages {
            engine.map_pages(addresses(&same(pages)), Perm::ReadWrite, backing, join).unwrap();
        }
        engine.commit().unwrap();
        calls(&sim).0
    };
    for (pages, alone, joined) in [
        (&[&[5, 6, 7][..]][..], 1, 1),
        (&[&[7, 6, 5]], 3, 1),
        (&[&[5, 6], &[7]], 2, 1),
        (&[&[5], &[7]], 2, 2),
    ] {
        assert_eq!(calls_of(pages, false, Backing(1)), alone, "{pages:?}");
        assert_eq!(calls_of(pages, true, Backing(1)), joined, "{pages:?}");
        assert_eq!(calls_of(pages, true, Backing::UNKNOWN), alone, "{pages:?}");
    }
}

#[test]
fn a_page_out_of_the_middle_costs_the_rest_a_map() {
    let (engine, sim) = engine(SimConfig::default());
    map(&engine, &same(&(0..16).collect::<Vec<_>>())).unwrap();
    assert_eq!(unmap(&engine, &[3, 9]).unwrap(), 2 * PAGE);
    assert_eq!(held(&sim), [(0, 3), (4, 5), (10, 6)], "honoured at once");
    assert_eq!(calls(&sim), (1 + 3, 1));
    assert_eq!(engine.stats().remapped_bytes, 14 * PAGE);
    // Pages that were never mapped are not mapped again.
    assert_eq!(unmap(&engine, &[3, 40]).unwrap(), 0);
    assert_eq!(unmap(&engine, &[0, 1, 2]).unwrap(), 3 * PAGE);
    assert_eq!((calls(&sim), engine.stats().remapped_bytes), ((4, 2), 14 * PAGE));
}

#[test]
fn nothing_is_wanted_of_an_array_with_one_bad_page() {
    let (engine, sim) = engine(SimConfig::default());
    map(&engine, &same(&[7])).unwrap();
    let (regions, before) = (engine.regions(), calls(&sim));
    let bad =
        |pages: Vec<(Iova, HostVa)>| engine.map_pages(pages, Perm::Read, Backing(1), false).unwrap_err();

    let overlap = bad(addresses(&same(&[1, 2, 5, 7])));
    assert_eq!((overlap.op, overlap.errno), (Op::Check, Errno::EEXIST));
    assert!(matches!(overlap.kind, ErrorKind::Overlap { with } if with.start() == 7 * PAGE));
    assert_eq!(bad(addresses(&same(&[1, 2, 1]))).errno, Errno::EEXIST, "twice in the array");
    let odd = bad([addresses(&same(&[1])), vec![(Iova(2 * PAGE + 1), hva(MEMORY))]].concat());
    assert_eq!(odd.kind, ErrorKind::Misaligned { value: 2 * PAGE + 1, page: PAGE });
    let odd = bad(vec![(iova(1), hva(MEMORY)), (iova(3), hva(MEMORY + 8))]);
    assert_eq!(odd.kind, ErrorKind::Misaligned { value: MEMORY + 8, page: PAGE });
    let odd = engine.unmap_pages([iova(7), Iova(5)]).unwrap_err();
    assert_eq!(odd.kind, ErrorKind::Misaligned { value: 5, page: PAGE });

    assert_eq!((engine.regions(), calls(&sim)), (regions.clone(), before));
    // Inside a transaction, changes made before the call stay.
    engine.begin().unwrap();
    map(&engine, &same(&[1])).unwrap();
    map(&engine, &same(&[2, 1])).unwrap_err();
    assert_eq!(unmap(&engine, &[7]).unwrap(), PAGE);
    engine.unmap_pages([iova(1), Iova(5)]).unwrap_err();
    assert_eq!(calls(&sim), before, "nothing before the commit");
    engine.commit().unwrap();
    assert_eq!(held(&sim), [(1, 1)]);
}

#[test]
fn an_array_that_is_refused_leaves_no_trace_in_its_transaction() {
    let (engine, sim) = engine(SimConfig::default());
    map(&engine, &same(&(0..16).collect::<Vec<_>>())).unwrap();
    let regions = engine.regions();
    engine.begin().unwrap();
    engine.unmap_pages([iova(3), iova(9), iova(4), Iova(5)]).unwrap_err();
    assert_eq!(engine.regions(), regions);
    // A failed commit keeps what its transaction unmapped, but nothing that it refused.
    map(&engine, &same(&[30])).unwrap();
    sim.reconfigure(|config| config.failures = vec![(2, INJECTED)]);
    assert_eq!(engine.commit().unwrap_err().errno, INJECTED);
    assert_eq!((engine.regions(), held(&sim)), (regions, vec![(0, 16)]));
}

#[test]
fn other_memory_at_the_same_page_is_not_mapped_again() {
    let (engine, sim) = engine(SimConfig::default());
    map(&engine, &same(&(0..16).collect::<Vec<_>>())).unwrap();
    engine.begin().unwrap();
    unmap(&engine, &[3]).unwrap();
    map(&engine, &[(3, 40)]).unwrap();
    let outcome = engine.commit().unwrap();
    assert_eq!((outcome.executed.map_bytes, outcome.remapped_bytes), (16 * PAGE, 15 * PAGE));
    assert_eq!(seen(&sim)[&3], 40);
}

#[test]
fn an_empty_array_is_nothing_and_an_exact_region_is_not_cut() {
    let (engine, sim) = engine(SimConfig::default());
    map(&engine, &[]).unwrap();
    assert_eq!(unmap(&engine, &[]).unwrap(), 0);
    let piece = common::Piece {
        start: 0,
        units: 1,
        object: 1,
        offset: 0,
        perm: Perm::Read,
        kind: vfio_fast_engine::region::Kind::Ram,
        join: false,
        exact: true,
    };
    engine.map_region(common::Space::new(0).region(piece)).unwrap();
    let error = unmap(&engine, &[3]).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::CutsExact { .. }), "{error}");
    assert_eq!(sim.mappings().len(), 1);
}

#[test]
fn every_failing_call_takes_the_whole_array_back() {
    let pages = same(&[1, 3, 5, 7, 8, 9, 20]);
    for rules in [Rules::Type1, Rules::Iommufd] {
        for nth in 1..=6 {
            let (engine, sim) = engine(keeping(rules));
            map(&engine, &same(&[30])).unwrap();
            sim.reconfigure(|config| config.failures = vec![(1 + nth, INJECTED)]);
            match map(&engine, &pages) {
                Ok(()) => assert!(nth > 5, "call {nth} failed unnoticed"),
                Err(error) => {
                    assert_eq!((error.op, error.errno), (Op::Map, INJECTED));
                    assert_eq!(held(&sim), [(30, 1)], "{rules:?}, call {nth}");
                }
            }
            assert_table(&engine, &sim);
        }
    }
}

fn array() -> impl Strategy<Value = Vec<(u64, u64)>> {
    // Mostly ascending and congruent, to form runs.
    let page = (0..PAGES, prop_oneof![4 => Just(0u64), 1 => 1..PAGES]);
    (prop::collection::vec(page, 0..12), any::<bool>()).prop_map(|(mut pages, ascending)| {
        if ascending {
            pages.sort_unstable();
        }
        pages.into_iter().map(|(page, shift)| (page, page + shift)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_device_sees_the_pages_that_are_wanted(
        steps in prop::collection::vec((array(), any::<bool>(), any::<bool>(), any::<bool>()), 1..12),
        rules in rules(),
    ) {
        let (engine, sim) = engine(keeping(rules));
        let mut wanted: BTreeMap<u64, u64> = BTreeMap::new();
        for (pages, maps, known, join) in steps {
            let remapped = engine.stats().remapped_bytes;
            if maps {
                let mut new = wanted.clone();
                let fits = pages.iter().all(|&(device, host)| new.insert(device, host).is_none());
                let backing = if known { Backing(1) } else { Backing::UNKNOWN };
                let answer = engine.map_pages(addresses(&pages), Perm::ReadWrite, backing, join);
                prop_assert_eq!(answer.is_ok(), fits);
                if fits {
                    wanted = new;
                }
                prop_assert_eq!(engine.stats().remapped_bytes, remapped, "a map never takes away");
            } else {
                let before = wanted.len() as u64;
                let pages: Vec<u64> = pages.iter().map(|(device, _)| *device).collect();
                // The rest of every entry that loses a page.
                let rest: u64 = held(&sim).iter().map(|&(first, count)| {
                    let stay = (first..first + count).filter(|page| !pages.contains(page)).count() as u64;
                    if stay < count { stay * PAGE } else { 0 }
                }).sum();
                wanted.retain(|device, _| !pages.contains(device));
                prop_assert_eq!(unmap(&engine, &pages).unwrap(), (before - wanted.len() as u64) * PAGE);
                prop_assert_eq!(engine.stats().remapped_bytes - remapped, rest);
            }
            prop_assert_eq!(seen(&sim), wanted.clone());
            assert_table(&engine, &sim);
        }
    }
}
