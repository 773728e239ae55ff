//! Dirty tracking on the model: every written page is reported exactly once, and no call cuts an entry.
#![allow(unsafe_code, reason = "the common part names host addresses")]

use std::collections::BTreeSet;
use vfio_fast_testing as common;

use common::range;
use proptest::prelude::*;
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::sim::{Call, Rules, Sim, SimConfig};
use vfio_fast_engine::error::{ErrorKind, Op};
use vfio_fast_engine::region::Region;
use vfio_fast_engine::{Config, Engine, Errno};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// Pages of the space that the random test uses: several entries of 2 MiB.
const PAGES: u64 = 3000;

/// The model with devices that report their writes.
fn exact() -> SimConfig {
    SimConfig { all_dirty: false, ..SimConfig::default() }
}

fn open(sim: SimConfig) -> (Engine, Sim) {
    let sim = Sim::new(sim);
    let config = Config { entry_size: 2 * MIB, ..Config::default() };
    (Engine::new(Box::new(sim.clone()), config).unwrap(), sim)
}

fn pages(first: u64, count: u64) -> IovaRange {
    range(first * PAGE, count * PAGE)
}

fn ram(range: IovaRange, exact: bool) -> Region {
    Region { exact, ..common::ram(range.start(), range.length()) }
}

fn bitmap(range: IovaRange) -> Vec<u64> {
    vec![0; (range.length() / PAGE).div_ceil(64) as usize]
}

/// The pages of `range` with bits that are set.
fn set(range: IovaRange, bitmap: &[u64]) -> BTreeSet<u64> {
    let bits = (0..range.length() / PAGE).filter(|bit| bitmap[(bit / 64) as usize] >> (bit % 64) & 1 == 1);
    let beyond = bitmap.iter().map(|word| word.count_ones()).sum::<u32>() as usize;
    let pages: BTreeSet<u64> = bits.map(|bit| range.start() / PAGE + bit).collect();
    assert_eq!(pages.len(), beyond, "bits behind the end are set");
    pages
}

fn read(engine: &Engine, range: IovaRange) -> BTreeSet<u64> {
    let mut words = bitmap(range);
    engine.read_dirty(range, &mut words).unwrap();
    set(range, &words)
}

fn unmap(engine: &Engine, range: IovaRange) -> BTreeSet<u64> {
    let mut words = bitmap(range);
    engine.unmap_dirty(range, &mut words).unwrap();
    set(range, &words)
}

#[test]
fn a_section_inside_an_entry_is_read_without_cutting_it() {
    let (engine, sim) = open(exact());
    engine.map_region(ram(range(2 * MIB, 2 * MIB), false)).unwrap();
    engine.track_dirty(true).unwrap();
    sim.write(2 * MIB + 3 * PAGE);
    sim.write(3 * MIB + 5 * PAGE);
    let calls = sim.calls().len();
    assert_eq!(read(&engine, range(2 * MIB, MIB)), [512 + 3].into());
    assert_eq!(sim.calls()[calls..], [Call::ReadDirty(range(2 * MIB, 2 * MIB))]);
    // The kernel's report for the other half was kept, and is returned once.
    assert_eq!(read(&engine, range(3 * MIB, MIB)), [768 + 5].into());
    assert!(read(&engine, range(2 * MIB, 2 * MIB)).is_empty());
}

#[test]
fn an_entry_that_begins_inside_a_word_is_asked_for_by_itself() {
    let (engine, sim) = open(exact());
    engine.map_region(ram(pages(512, 64), true)).unwrap();
    engine.map_region(ram(pages(576, 10), true)).unwrap();
    engine.map_region(ram(pages(586, 10), true)).unwrap();
    engine.track_dirty(true).unwrap();
    let calls = sim.calls().len();
    sim.write(590 * PAGE);
    assert_eq!(read(&engine, pages(512, 84)), [590].into());
    let asked = [pages(512, 74), pages(586, 10)].map(Call::ReadDirty);
    assert_eq!(sim.calls()[calls..], asked);
}

#[test]
fn a_bitmap_is_added_to() {
    let (engine, sim) = open(exact());
    engine.map_region(ram(pages(1024, 70), false)).unwrap();
    engine.track_dirty(true).unwrap();
    sim.write(1090 * PAGE);
    let mut words = [1, 0];
    engine.read_dirty(pages(1024, 70), &mut words).unwrap();
    assert_eq!(words, [1, 1 << 2]);
}

#[test]
fn what_is_mapped_again_stays_dirty() {
    let (engine, sim) = open(exact());
    engine.map_region(ram(range(0x20_0000, 2 * MIB), false)).unwrap();
    engine.track_dirty(true).unwrap();
    sim.write(0x20_0000);
    sim.write(0x20_0000 + 7 * PAGE);
    sim.write(0x20_0000 + 8 * PAGE);
    // A plain unmap of one page: its dirty bit is dropped, and the rest of the entry is mapped again.
    engine.unmap(pages(512 + 7, 1)).unwrap();
    assert_eq!(sim.mappings().len(), 2);
    assert_eq!(read(&engine, range(0x20_0000, 2 * MIB)), [512, 520].into());
}

/// QEMU wants its memory again after a commit that has failed because the kernel has refused an unmap elsewhere.
#[test]
fn what_is_wanted_again_after_a_commit_that_failed_is_still_dirty() {
    let (engine, sim) = open(exact());
    let (other, whole, half) = (range(0, 2 * MIB), range(8 * MIB, 2 * MIB), range(8 * MIB, MIB));
    engine.map_region(ram(other, false)).unwrap();
    engine.map_region(ram(whole, false)).unwrap();
    engine.track_dirty(true).unwrap();
    sim.write(8 * MIB + 5 * PAGE);
    // Every call from the next one on: an unmap.
    let next = sim.calls().len() as u64 + 1;
    sim.reconfigure(|config| config.failures = vec![(next, Errno::EBUSY), (next + 1, Errno::EBUSY)]);
    engine.begin().unwrap();
    engine.unmap(other).unwrap();
    engine.unmap(whole).unwrap();
    engine.map_region(ram(half, false)).unwrap();
    assert_eq!(engine.commit().unwrap_err().errno, Errno::EBUSY);
    sim.reconfigure(|config| config.failures.clear());
    engine.retry_unmap().unwrap();
    assert!(sim.mappings().is_empty(), "{:?}", sim.mappings());

    engine.map_region(ram(half, false)).unwrap();
    assert_eq!(read(&engine, half), [2048 + 5].into());
    assert!(read(&engine, half).is_empty());
}

#[test]
fn what_is_unmapped_by_itself_is_clean_when_it_is_mapped_again() {
    let (engine, sim) = open(exact());
    let (region, other) = (ram(range(2 * MIB, MIB), true), ram(range(4 * MIB, MIB), true));
    engine.map_region(region).unwrap();
    engine.map_region(other).unwrap();
    engine.track_dirty(true).unwrap();
    sim.write(2 * MIB);
    sim.write(3 * MIB - PAGE);
    sim.write(5 * MIB - PAGE);
    // Leaves the last page of each region to be reported.
    assert_eq!(read(&engine, range(2 * MIB, PAGE)), [512].into());
    assert!(read(&engine, range(4 * MIB, PAGE)).is_empty());
    engine.unmap(region.range).unwrap();
    engine.map_region(region).unwrap();
    assert!(read(&engine, region.range).is_empty());
    assert_eq!(read(&engine, other.range), [1279].into(), "the other region was not touched");
}

#[test]
fn devices_that_do_not_tell_make_everything_dirty() {
    let (engine, _sim) = open(SimConfig::default());
    engine.map_region(ram(pages(600, 10), false)).unwrap();
    engine.track_dirty(true).unwrap();
    for _ in 0..2 {
        assert_eq!(read(&engine, pages(590, 30)), (600..610).collect());
    }
    assert_eq!(unmap(&engine, pages(590, 30)), (600..610).collect());
    assert!(unmap(&engine, pages(590, 30)).is_empty());
}

#[test]
fn a_bitmap_that_is_too_small_for_the_kernel_is_asked_for_in_parts() {
    // The bitmap covers 1024 pages: two entries.
    let (engine, sim) = open(SimConfig { max_bitmap_bytes: 128, ..exact() });
    engine.map_region(ram(range(2 * MIB, 20 * MIB), false)).unwrap();
    engine.track_dirty(true).unwrap();
    sim.write(5 * MIB);
    sim.write(21 * MIB);
    let calls = sim.calls().len();
    assert_eq!(read(&engine, range(2 * MIB, 20 * MIB)), [5 * 256, 21 * 256].into());
    let lengths: Vec<u64> = sim.calls()[calls..]
        .iter()
        .map(|call| match call {
            Call::ReadDirty(range) => range.length() / MIB,
            call => panic!("{call:?}"),
        })
        .collect();
    assert_eq!(lengths, [4; 5]);
    sim.write(5 * MIB);
    let calls = sim.calls().len();
    assert_eq!(unmap(&engine, range(2 * MIB, 20 * MIB)), [5 * 256].into());
    assert_eq!(sim.calls().len() - calls, 5);
    assert!(sim.mappings().is_empty());
}

#[test]
fn of_an_entry_too_large_for_any_bitmap_everything_is_dirty() {
    let (engine, sim) = open(SimConfig { max_bitmap_bytes: 8, ..exact() });
    engine.map_region(ram(pages(512, 100), true)).unwrap();
    engine.track_dirty(true).unwrap();
    let calls = sim.calls().len();
    assert_eq!(read(&engine, pages(512, 100)).len(), 100);
    assert_eq!(sim.calls().len(), calls, "the kernel would only have refused");
    assert_eq!(unmap(&engine, pages(512, 100)).len(), 100);
    assert!(sim.mappings().is_empty());
}

#[test]
fn what_cannot_be_told_is_an_error() {
    let mut words = [0];
    let (engine, _sim) = open(exact());
    let error = engine.read_dirty(pages(0, 1), &mut words).unwrap_err();
    assert_eq!((error.errno, error.kind), (Errno::EINVAL, ErrorKind::Other("dirty pages are not tracked")));
    engine.track_dirty(true).unwrap();
    engine.track_dirty(true).unwrap();
    assert_eq!(engine.read_dirty(pages(0, 65), &mut words).unwrap_err().errno, Errno::EINVAL);
    let odd = engine.read_dirty(range(0, PAGE + 1), &mut words).unwrap_err();
    assert!(matches!(odd.kind, ErrorKind::Misaligned { .. }));
    engine.map_region(ram(pages(0, 4), true)).unwrap();
    let cut = engine.unmap_dirty(pages(0, 1), &mut words).unwrap_err();
    assert!(matches!(cut.kind, ErrorKind::CutsExact { .. }));
    engine.begin().unwrap();
    let open_transaction = engine.unmap_dirty(pages(0, 4), &mut words).unwrap_err();
    assert_eq!(open_transaction.errno, Errno::EBUSY);
    engine.read_dirty(pages(0, 4), &mut words).unwrap();
    engine.abort().unwrap();
    engine.track_dirty(false).unwrap();
    assert_eq!(engine.unmap_dirty(pages(0, 4), &mut words).unwrap_err().errno, Errno::EINVAL);

    for config in [
        SimConfig { rules: Rules::Iommufd, ..SimConfig::default() },
        SimConfig { max_bitmap_bytes: 0, ..SimConfig::default() },
    ] {
        let engine = open(config).0;
        let error = engine.track_dirty(true).unwrap_err();
        assert_eq!((error.op, error.errno), (Op::Dirty, Errno::EOPNOTSUPP));
        assert_eq!(engine.unmap_dirty(pages(0, 1), &mut words).unwrap_err().errno, Errno::EOPNOTSUPP);
    }
}

#[test]
fn a_failed_unmap_loses_no_page() {
    for failing in 1..=3 {
        let (engine, sim) = open(exact());
        // Three calls, because nothing is mapped between the regions.
        for region in 0..3 {
            engine.map_region(ram(pages(1024 * (region + 1), 512), false)).unwrap();
        }
        engine.track_dirty(true).unwrap();
        let written: BTreeSet<u64> = (1..4).map(|region| 1024 * region + 9).collect();
        written.iter().for_each(|page| sim.write(page * PAGE));
        let nth = sim.calls().len() as u64 + failing;
        sim.reconfigure(|config| config.failures = vec![(nth, Errno::EIO)]);
        let whole = pages(0, 5000);
        let mut words = bitmap(whole);
        engine.unmap_dirty(whole, &mut words).unwrap_err();
        // The rollback unmaps what the failed call did not, and reads its dirty pages too.
        assert!(sim.mappings().is_empty());
        assert_eq!(set(whole, &words), written, "call {failing}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Map(u64, u64, bool),
    Write(u64),
    Read(u64, u64),
    Unmap(u64, u64),
    UnmapDirty(u64, u64),
    /// Two unmaps and a map in one transaction.
    Transact([(u64, u64); 3]),
    Restart,
}

fn span() -> impl Strategy<Value = (u64, u64)> {
    (0..PAGES).prop_flat_map(|first| (Just(first), 1..=PAGES - first))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (span(), prop::bool::weighted(0.2)).prop_map(|((first, count), exact)| Step::Map(first, count, exact)),
        8 => (0..PAGES).prop_map(Step::Write),
        3 => span().prop_map(|(first, count)| Step::Read(first, count)),
        2 => span().prop_map(|(first, count)| Step::Unmap(first, count)),
        2 => span().prop_map(|(first, count)| Step::UnmapDirty(first, count)),
        1 => [span(), span(), span()].prop_map(Step::Transact),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #[test]
    fn what_is_told_is_what_was_written(
        steps in prop::collection::vec(step(), 1..40),
        max_bitmap_bytes in prop_oneof![Just(256u64 << 20), Just(64), Just(136)],
    ) {
        let (engine, sim) = open(SimConfig { max_bitmap_bytes, ..exact() });
        engine.track_dirty(true).unwrap();
        let mut written = BTreeSet::new();
        let within = |first: u64, count: u64| move |page: &u64| (first..first + count).contains(page);
        for step in steps {
            match step {
                Step::Map(first, count, exact) => {
                    // The smallest bitmap covers an entry of 2 MiB; exact entries must not be larger.
                    let count = if exact { count.min(512) } else { count };
                    let _ = engine.map_region(ram(pages(first, count), exact));
                }
                Step::Write(page) => {
                    if sim.mappings().iter().any(|mapping| mapping.range.contains(pages(page, 1))) {
                        sim.write(page * PAGE);
                        written.insert(page);
                    }
                }
                Step::Read(first, count) => {
                    let told = read(&engine, pages(first, count));
                    let expected = written.iter().copied().filter(within(first, count)).collect();
                    prop_assert_eq!(told, expected);
                    written.retain(|page| !within(first, count)(page));
                }
                Step::Unmap(first, count) => {
                    if engine.unmap(pages(first, count)).is_ok() {
                        written.retain(|page| !within(first, count)(page));
                    }
                }
                Step::UnmapDirty(first, count) => {
                    let mut words = bitmap(pages(first, count));
                    if engine.unmap_dirty(pages(first, count), &mut words).is_ok() {
                        let expected: BTreeSet<u64> =
                            written.iter().copied().filter(within(first, count)).collect();
                        prop_assert_eq!(set(pages(first, count), &words), expected);
                        written.retain(|page| !within(first, count)(page));
                    }
                }
                Step::Transact([one, two, three]) => {
                    engine.begin().unwrap();
                    for (first, count) in [one, two] {
                        let _ = engine.unmap(pages(first, count));
                    }
                    let _ = engine.map_region(ram(pages(three.0, three.1), false));
                    engine.commit().unwrap();
                    let wanted = engine.regions();
                    // Pages unmapped and mapped again in one transaction may have stayed mapped, and so dirty.
                    written.retain(|page| wanted.iter().any(|region| region.range.contains(pages(*page, 1))));
                }
                Step::Restart => {
                    engine.track_dirty(false).unwrap();
                    engine.track_dirty(true).unwrap();
                    written.clear();
                }
            }
        }
        let everything = read(&engine, pages(0, PAGES));
        prop_assert_eq!(everything, written);
    }
}
