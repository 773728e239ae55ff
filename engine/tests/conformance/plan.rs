//! A transaction with every kind of step: it cuts a region, removes one, and adds some.

use std::collections::BTreeMap;

use super::cases::PAGE;
use super::common::range;
use super::kernel::device_name;
use super::process::ram;
use super::witness::{self, PageTables, assert_same};
use vfio_fast_engine::backend::Mapping;
use vfio_fast_engine::region::{Perm, Region};
use vfio_fast_engine::{Engine, Result};

/// Regions so far from each other need page tables of their own.
const FAR: u64 = 0x4000_0000;
/// The pages of a region.
const PAGES: u64 = 16;
/// The region of which the transaction unmaps a part, and that part, in which it maps other memory.
const CUT: u64 = FAR;
const PART: (u64, u64) = (CUT + 4 * PAGE, 4 * PAGE);
/// The region that the transaction unmaps, and those that it adds.
const REMOVED: u64 = 2 * FAR;
const ADDED: [u64; 4] = [3 * FAR, 4 * FAR, 5 * FAR, 6 * FAR];
/// The pages, and the entries, that are mapped before the transaction and after it.
pub const PREPARED: u64 = 2 * PAGES;
pub const PREPARED_ENTRIES: u64 = 2;
pub const MAPPED: u64 = (1 + ADDED.len() as u64) * PAGES;
pub const ENTRIES: u64 = 3 + ADDED.len() as u64;
/// The bytes of an object that the regions are in, and more.
pub const PRESENT: usize = 1 << 20;

/// The host address and the permission of each mapped page, by IOVA.
pub type Pages = BTreeMap<u64, (u64, Perm)>;

/// Maps what the transaction changes.
pub fn prepare(engine: &Engine) -> Result<()> {
    engine.begin()?;
    engine.map_region(ram(CUT, 1, 0, PAGES * PAGE))?;
    engine.map_region(ram(REMOVED, 2, 0, PAGES * PAGE))?;
    engine.commit().map(drop)
}

fn added(iova: u64) -> Region {
    let object = 1 + iova / FAR % 3;
    ram(iova, object, iova / FAR * PAGES * PAGE, PAGES * PAGE)
}

/// What the transaction maps in the middle of another region.
fn replacing() -> Region {
    Region { perm: Perm::Read, ..ram(PART.0, 3, 0, PART.1) }
}

/// The transaction.
pub fn transact(engine: &Engine) -> Result<()> {
    engine.begin()?;
    engine.unmap(range(PART.0, PART.1))?;
    engine.unmap(range(REMOVED, PAGES * PAGE))?;
    engine.map_region(replacing())?;
    for iova in ADDED {
        engine.map_region(added(iova))?;
    }
    engine.commit().map(drop)
}

/// What a transaction that succeeds leaves.
pub fn after() -> Pages {
    let mut pages = pages(&[mapping(&ram(CUT, 1, 0, PAGES * PAGE))]);
    pages.extend(self::pages(&[mapping(&replacing())]));
    pages.extend(self::pages(&ADDED.map(|iova| mapping(&added(iova)))));
    pages
}

/// What a transaction that fails leaves: it adds nothing, but what it was asked to unmap is not mapped.
pub fn undone() -> Pages {
    let mut pages = pages(&[mapping(&ram(CUT, 1, 0, PAGES * PAGE))]);
    pages.retain(|iova, _| !range(PART.0, PART.1).contains(range(*iova, PAGE)));
    pages
}

pub fn mapping(region: &Region) -> Mapping {
    Mapping { range: region.range, hva: region.hva, perm: region.perm }
}

/// The mappings, page by page.
pub fn pages(mappings: &[Mapping]) -> Pages {
    let of = |mapping: &Mapping| {
        let (start, hva, perm) = (mapping.range.start(), mapping.hva.raw(), mapping.perm);
        (0..mapping.range.length()).step_by(PAGE as usize).map(move |at| (start + at, (hva + at, perm)))
    };
    mappings.iter().flat_map(of).collect()
}

/// Checks that the engine, and the IOMMU if it shows that, have these pages.
pub fn assert_left(what: &str, engine: &Engine, expected: &Pages) {
    let found = table(engine);
    assert!(pages(&found) == *expected, "{what}: {found:x?}");
    if let Some(tables) = PageTables::of(&device_name()) {
        assert_same(what, &witness::mapped(&found), &tables.read());
    }
}

/// What the engine says is mapped.
pub fn table(engine: &Engine) -> Vec<Mapping> {
    engine.entries().iter().map(|entry| entry.mapping()).collect()
}
