//! IOMMUs whose smallest page has 4, 16 or 64 KiB: what is mapped, unmapped, reported and refused is in these pages.
#![allow(unsafe_code, reason = "the common part names host addresses")]

use std::collections::BTreeSet;
use vfio_fast_testing as common;

use common::{assert_table, hva, range, rules};
use proptest::prelude::*;
use vfio_fast_engine::addr::{Iova, IovaRange, PageSizes};
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::error::ErrorKind;
use vfio_fast_engine::region::{Backing, Perm, Region};
use vfio_fast_engine::{Config, Engine, Errno};

/// The bitmaps of SMMUv3's three granules: pages, blocks, and blocks of blocks.
const GRANULES: [u64; 3] = [1 << 12 | 1 << 21 | 1 << 30, 1 << 14 | 1 << 25, 1 << 16 | 1 << 29];
/// Pages of the space: several entries of 2 MiB, whatever a page has.
const PAGES: u64 = 1600;

/// One call, in pages: the first one and their number.
#[derive(Clone, Copy, Debug)]
enum Step {
    Map(u64, u64),
    /// Pages one by one, every other one.
    MapPages(u64, u64),
    Unmap(u64, u64),
    UnmapPages(u64, u64),
}

prop_compose! {
    fn step()(first in 0..PAGES, kind in 0..4)(
        first in Just(first), count in 1..=(PAGES - first).min(700), kind in Just(kind)
    ) -> Step {
        match kind {
            0 => Step::Map(first, count),
            1 => Step::MapPages(first, count.min(40)),
            2 => Step::Unmap(first, count),
            _ => Step::UnmapPages(first, count.min(40)),
        }
    }
}

fn open(config: SimConfig) -> (Engine, Sim) {
    let sim = Sim::new(config);
    let config = Config { entry_size: 2 << 20, ..Config::default() };
    (Engine::new(Box::new(sim.clone()), config).unwrap(), sim)
}

fn of(bitmap: u64, rules: Rules) -> (Engine, Sim, u64) {
    let page_sizes = PageSizes::from_bitmap(bitmap);
    let (engine, sim) = open(SimConfig { page_sizes, all_dirty: false, ..common::keeping(rules) });
    (engine, sim, page_sizes.smallest())
}

fn every_other(first: u64, count: u64) -> impl Iterator<Item = u64> + Clone {
    (first..first + count).step_by(2)
}

/// The pages that the kernel maps. Each mapping begins and ends with a page.
fn held(sim: &Sim, page: u64) -> BTreeSet<u64> {
    let mappings = sim.mappings();
    let ranges = mappings.iter().map(|mapping| (mapping.range.start(), mapping.range.length()));
    let pages = ranges.flat_map(|(start, bytes)| {
        assert_eq!((start | bytes) & (page - 1), 0, "{start:#x} {bytes:#x}");
        start / page..(start + bytes) / page
    });
    pages.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_mapped_is_in_pages(
        bitmap in prop::sample::select(GRANULES.to_vec()),
        rules in rules(),
        steps in prop::collection::vec(step(), 1..24),
    ) {
        let (engine, sim, page) = of(bitmap, rules);
        let pages = |first: u64, count: u64| range(first * page, count * page);
        let mut wanted = BTreeSet::new();
        for step in steps {
            match step {
                Step::Map(first, count) => {
                    let range = pages(first, count);
                    let is_free = wanted.range(first..first + count).next().is_none();
                    let mapped = engine.map_region(common::ram(range.start(), range.length()));
                    prop_assert_eq!(mapped.is_ok(), is_free);
                    if is_free {
                        wanted.extend(first..first + count);
                    }
                }
                Step::MapPages(first, count) => {
                    let is_free = every_other(first, count).all(|one| !wanted.contains(&one));
                    let array = every_other(first, count)
                        .map(|one| (Iova(one * page), hva(common::RAM + one * page)));
                    let mapped = engine.map_pages(array, Perm::ReadWrite, Backing::UNKNOWN, false);
                    prop_assert_eq!(mapped.is_ok(), is_free);
                    if is_free {
                        wanted.extend(every_other(first, count));
                    }
                }
                Step::Unmap(first, count) => {
                    let had = wanted.range(first..first + count).count() as u64;
                    prop_assert_eq!(engine.unmap(pages(first, count)).unwrap(), had * page);
                    wanted.retain(|one| !(first..first + count).contains(one));
                }
                Step::UnmapPages(first, count) => {
                    let had = every_other(first, count).filter(|one| wanted.contains(one)).count() as u64;
                    let array = every_other(first, count).map(|one| Iova(one * page));
                    prop_assert_eq!(engine.unmap_pages(array).unwrap(), had * page);
                    wanted.retain(|one| every_other(first, count).all(|other| other != *one));
                }
            }
            prop_assert_eq!(&held(&sim, page), &wanted);
        }
        assert_table(&engine, &sim);
    }
}

#[test]
fn the_smallest_page_is_reported() {
    let pages = GRANULES.map(|bitmap| of(bitmap, Rules::Type1).0.info().limits.page_sizes.smallest());
    assert_eq!(pages, [4 << 10, 16 << 10, 64 << 10]);
    assert_eq!(GRANULES.map(|bitmap| of(bitmap, Rules::Iommufd).0.page()), pages);
}

#[test]
fn a_part_of_a_page_is_refused_before_the_kernel_is_asked() {
    for (bitmap, rules) in
        GRANULES.into_iter().flat_map(|bits| [(bits, Rules::Type1), (bits, Rules::Iommufd)])
    {
        let (engine, sim, page) = of(bitmap, rules);
        let half = page / 2;
        let whole = common::ram(page, 2 * page);
        let refused = [
            Region { range: range(half, page), ..whole },
            Region { range: range(page, page + half), ..whole },
            Region { hva: hva(common::RAM + half), ..whole },
        ];
        for region in refused {
            let error = engine.map_region(region).unwrap_err();
            assert_eq!(error.errno, Errno::EINVAL);
            assert!(
                matches!(error.kind, ErrorKind::Misaligned { page: named, .. } if named == page),
                "{error}"
            );
        }
        assert_eq!(engine.unmap(range(page, half)).unwrap_err().errno, Errno::EINVAL);
        let array = [(Iova(half), hva(common::RAM))];
        assert!(engine.map_pages(array, Perm::ReadWrite, Backing::UNKNOWN, false).is_err());
        assert_eq!(sim.calls(), []);
        engine.map_region(whole).unwrap();
    }
}

#[test]
fn a_bit_stands_for_a_page() {
    for bitmap in GRANULES {
        let (engine, sim, page) = of(bitmap, Rules::Type1);
        let all: IovaRange = range(0, 130 * page);
        engine.map_region(common::ram(0, all.length())).unwrap();
        engine.track_dirty(true).unwrap();
        for written in [0, 64, 129] {
            sim.write((written + 1) * page - 8);
        }
        let mut words = [0; 3];
        engine.read_dirty(all, &mut words).unwrap();
        assert_eq!(words, [1, 1, 0b10]);
    }
}
