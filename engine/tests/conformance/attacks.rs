//! A driver that aims its devices at everything that they must not reach: the bytes next to what is mapped, and what was
//! mapped or was to be. What is refused changes nothing and reads nothing, and what is mapped stays reachable.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;

use vfio_fast_engine::addr::{Iova, IovaRange};
use vfio_fast_engine::backend::{Backend, Mapping};
use vfio_fast_engine::region::{Backing, Perm, Region};
use vfio_fast_engine::{Config, Engine, Errno};

use super::canaries::Canaries;
use super::cases::PAGE;
use super::common::hooked::{Hooked, Then, Waiting};
use super::hostile::{Hostile, Tally};
use super::kernel::{self, Driver};
use super::process::ram;

/// Where everything is mapped. The judge of kernel logs knows it (`images/e2e/src/splat.rs`): faults here are wanted.
/// It needs more than 32 bits and fits the smallest IOMMU, which has 39.
const START: u64 = 0x5a_0000_0000;
/// The pages from there on. The first object has the memory for all of them, in the same order.
const PAGES: u64 = 2048;
/// Where the devices' buffers are copied.
const BUFFERS: u64 = START + 2 * PAGES * PAGE;
/// Other memory: for pages that are mapped elsewhere, for what others map, and for the ends of the address space.
const OTHER: u64 = 2;
const OTHER_PAGES: u64 = 8;

/// First page and number of pages.
type Pages = (u64, u64);

const SINGLE: Pages = (16, 1);
/// Two entries of this many pages, 2 MiB where a page has 4 KiB, and blocks in the middle of the first one.
const ENTRY: u64 = 512;
const LARGE: Pages = (ENTRY, 2 * ENTRY);
const BLOCKS: Pages = (768, 128);
/// There is a page between them.
const BEFORE_HOLE: Pages = (1600, 3);
const AFTER_HOLE: Pages = (1604, 4);
/// A DIMM, and a region right after it.
const DIMM: Pages = (1664, 64);
const NEIGHBOUR: Pages = (1728, 4);
/// A region that only can be read, and a region right after it.
const READ_ONLY: Pages = (1760, 2);
const WRITABLE: Pages = (1762, 2);
/// Regions of a commit that fails, and the page that is in its way.
const FAILING: [Pages; 2] = [(1792, 2), (1796, 2)];
const IN_THE_WAY: Pages = (1797, 1);
const ABORTED: Pages = (1820, 2);
/// Pages of a vIOMMU.
const VIOMMU: [Pages; 2] = [(1850, 1), (1851, 1)];
/// Regions of a job, the second of which waits.
const JOB: [Pages; 2] = [(1880, 2), (1890, 2)];

fn iova(page: u64) -> u64 {
    START + page * PAGE
}

fn range((first, count): Pages) -> IovaRange {
    IovaRange::new(Iova(iova(first)), count * PAGE).unwrap()
}

fn region((first, count): Pages) -> Region {
    ram(iova(first), 1, first * PAGE, count * PAGE)
}

/// The edge before a page.
fn edge(page: u64) -> u64 {
    iova(page) - 1
}

fn edges<const N: usize>(pages: [u64; N]) -> [u64; N] {
    pages.map(edge)
}

/// The map calls that wait until the test lets them go on.
fn waits(mapping: &Mapping) -> bool {
    [FAILING[1], JOB[1]].into_iter().any(|pages| range(pages).start() == mapping.range.start())
}

/// An engine in the container, and the devices that attack it.
struct Attack {
    engine: Arc<Engine>,
    /// Which map call waits, and what lets it go on.
    began: Receiver<IovaRange>,
    go_on: Sender<Then>,
    hostile: Hostile,
}

impl Attack {
    fn permit(&mut self, pages: Pages) {
        let Region { range, hva, perm, .. } = region(pages);
        self.hostile.permit(range, hva.raw(), perm);
    }

    fn forbid(&mut self, pages: Pages) {
        self.hostile.forbid(range(pages));
    }

    /// Waits for the map call that waits.
    fn assert_waiting(&self, pages: Pages) {
        assert_eq!(self.began.recv().expect("a map call"), range(pages));
    }

    fn regions(&mut self) {
        let read_only = Region { perm: Perm::Read, ..region(READ_ONLY) };
        let writable = [SINGLE, LARGE, BEFORE_HOLE, AFTER_HOLE, DIMM, NEIGHBOUR, WRITABLE];
        self.engine.begin().unwrap();
        writable.into_iter().for_each(|pages| self.engine.map_region(region(pages)).unwrap());
        self.engine.map_region(read_only).unwrap();
        self.engine.commit().unwrap();
        writable.into_iter().for_each(|pages| self.permit(pages));
        self.hostile.permit(read_only.range, read_only.hva.raw(), read_only.perm);
        self.hostile.attack(&[
            ("a single page", &edges([16, 17])),
            ("large entries", &edges([512, 1024, 1536])),
            ("a page between two entries", &edges([1600, 1603, 1604, 1608])),
            ("two entries side by side", &edges([1728])),
            ("a read-only region", &edges([1760, 1762])),
        ]);
    }

    fn removed(&mut self) {
        self.engine.begin().unwrap();
        assert_eq!(self.engine.unmap(range(DIMM)).unwrap(), DIMM.1 * PAGE);
        self.engine.commit().unwrap();
        self.forbid(DIMM);
        assert_eq!(self.engine.unmap(range(BLOCKS)).unwrap(), BLOCKS.1 * PAGE);
        self.forbid(BLOCKS);
        self.hostile.attack(&[
            ("a removed region", &edges([1664, 1728])),
            ("blocks removed from the middle", &edges([768, 896, 1024])),
        ]);
    }

    /// The kernel refuses the second region of a commit, because somebody else has mapped a page there.
    fn failed(&mut self, other: &dyn Backend) {
        let Region { range: taken, hva, perm, .. } = ram(iova(IN_THE_WAY.0), OTHER, 0, PAGE);
        other.map(&Mapping { range: taken, hva, perm }, None).unwrap();
        let engine = self.engine.clone();
        let commit = thread::spawn(move || {
            engine.begin().unwrap();
            FAILING.into_iter().for_each(|pages| engine.map_region(region(pages)).unwrap());
            engine.commit().map(drop)
        });
        self.assert_waiting(FAILING[1]);
        self.permit(FAILING[0]);
        self.hostile.attack(&[("mapped by a commit that will fail", &edges([1792, 1794]))]);
        self.go_on.send(Then::Maps).unwrap();
        let error = commit.join().unwrap().unwrap_err();
        assert_eq!(error.errno, Errno::EEXIST, "{error}");
        assert_eq!(other.unmap(taken), Ok(PAGE));
        self.forbid(FAILING[0]);

        self.engine.begin().unwrap();
        self.engine.map_region(region(ABORTED)).unwrap();
        assert_eq!(self.engine.unmap(range(NEIGHBOUR)).unwrap(), NEIGHBOUR.1 * PAGE);
        self.engine.abort().unwrap();
        self.hostile.attack(&[
            ("after that commit has failed", &edges([1792, 1794, 1796, 1798])),
            ("an aborted transaction", &edges([1820, 1822, 1732])),
        ]);
    }

    /// Maps a page of a vIOMMU to memory of an object.
    fn map_page(&mut self, pages: Pages, object: u64, offset: u64) {
        let Region { range, hva, perm, .. } = ram(iova(pages.0), object, offset, PAGE);
        self.engine.map_pages([(Iova(range.start()), hva)], perm, Backing::UNKNOWN, false).unwrap();
        self.hostile.permit(range, hva.raw(), perm);
    }

    fn pages_of_a_viommu(&mut self) {
        let around = edges([1850, 1851, 1852]);
        VIOMMU.into_iter().for_each(|pages| self.map_page(pages, 1, pages.0 * PAGE));
        self.hostile.attack(&[("pages of a vIOMMU", &around)]);
        assert_eq!(self.engine.unmap_pages([Iova(iova(VIOMMU[0].0))]).unwrap(), PAGE);
        self.forbid(VIOMMU[0]);
        self.hostile.attack(&[("one of them revoked", &around)]);
        self.map_page(VIOMMU[0], OTHER, PAGE);
        self.hostile.attack(&[("other memory in its place", &around)]);
    }

    fn background(&mut self) {
        let around = edges([1880, 1882, 1890, 1892]);
        self.engine.begin().unwrap();
        JOB.into_iter().for_each(|pages| self.engine.map_region(region(pages)).unwrap());
        self.engine.commit_background().unwrap();
        self.assert_waiting(JOB[1]);
        self.permit(JOB[0]);
        self.hostile.attack(&[("a job that waits", &around)]);
        self.go_on.send(Then::Maps).unwrap();
        assert!(self.engine.wait(None, None).unwrap());
        self.permit(JOB[1]);
        self.hostile.attack(&[("after waiting for it", &around)]);
    }

    /// Suspending takes nothing away, and resuming gives nothing more.
    fn suspended(&mut self) {
        let around = edges([16, 17, 768]);
        self.engine.suspend().unwrap();
        self.hostile.attack(&[("suspended", &around)]);
        self.engine.resume().unwrap();
        self.hostile.attack(&[("resumed", &around)]);
    }

    fn closed(&mut self) {
        self.engine.close().unwrap();
        self.hostile.forbid(IovaRange::ALL);
        self.hostile.attack(&[("closed", &edges([16, 17, 512, 1536, 1762, 1851]))]);
    }

    /// The first and the last page that the container permits. type1 has to be denied the last page of all, which older
    /// kernels never unmap.
    fn ends(mut self, backend: Box<dyn Backend>) -> (Vec<Tally>, u64) {
        let engine = Engine::new(backend, Config { threads: 1, ..Config::default() }).unwrap();
        let ranges = engine.info().limits.iova_ranges;
        assert_eq!(ranges.first().expect("ranges").start(), 0);
        let last = ranges.last().expect("ranges").last();
        if u64::MAX - last == PAGE {
            let error = engine.map_region(ram(last + 1, OTHER, 4 * PAGE, PAGE)).unwrap_err();
            assert_eq!(error.errno, Errno::EINVAL, "{error}");
        }
        for (iova, offset) in [(0, 2 * PAGE), (last - (PAGE - 1), 3 * PAGE)] {
            let region = ram(iova, OTHER, offset, PAGE);
            engine.map_region(region).unwrap();
            self.hostile.permit(region.range, region.hva.raw(), region.perm);
        }
        self.hostile.attack(&[("the ends of the address space", &[PAGE - 1, last - PAGE, last])]);
        engine.close().unwrap();
        (self.hostile.tallies, last)
    }
}

/// What each case has to show: attempts, refused, landed.
fn expected(last: u64) -> Vec<Tally> {
    // There is nothing beyond the last address of all.
    let ends = match u64::MAX - last {
        0 => (24, 14, 10),
        PAGE => (32, 20, 12),
        _ => (34, 22, 12),
    };
    let cases = [
        ("a single page", (24, 16, 8)),
        ("large entries", (36, 12, 24)),
        ("a page between two entries", (48, 20, 28)),
        ("two entries side by side", (12, 0, 12)),
        ("a read-only region", (24, 12, 12)),
        ("a removed region", (24, 18, 6)),
        ("blocks removed from the middle", (36, 12, 24)),
        ("mapped by a commit that will fail", (24, 12, 12)),
        ("after that commit has failed", (48, 48, 0)),
        ("an aborted transaction", (36, 30, 6)),
        ("pages of a vIOMMU", (36, 16, 20)),
        ("one of them revoked", (36, 26, 10)),
        ("other memory in its place", (36, 16, 20)),
        ("a job that waits", (48, 36, 12)),
        ("after waiting for it", (48, 24, 24)),
        ("suspended", (36, 22, 14)),
        ("resumed", (36, 22, 14)),
        ("closed", (72, 72, 0)),
        ("the ends of the address space", ends),
    ];
    let tally = |(case, (attempts, refused, landed))| Tally { case, attempts, refused, landed };
    cases.into_iter().map(tally).collect()
}

fn print(driver: Driver, tallies: &[Tally]) {
    println!("\n{:<35}{:>8}{:>8}{:>8}", format!("{driver:?}"), "attempts", "refused", "landed");
    for Tally { case, attempts, refused, landed } in tallies {
        println!("{case:<35}{attempts:>8}{refused:>8}{landed:>8}");
    }
}

pub fn reach_only_what_is_mapped(driver: Driver) {
    kernel::with_edus(driver, |open, devices| {
        let memory = Canaries::new(&[(1, PAGES * PAGE), (OTHER, OTHER_PAGES * PAGE)]);
        let (hooks, began, go_on) = Waiting::new(waits);
        let backend = Hooked { kernel: open(), hooks };
        let config = Config { entry_size: ENTRY * PAGE, threads: 1, huge_pages: false, ..Config::default() };
        let engine = Arc::new(Engine::new(Box::new(backend), config).unwrap());
        let hostile = Hostile::new(devices, open(), BUFFERS, memory);
        let mut attack = Attack { engine, began, go_on, hostile };
        attack.regions();
        attack.removed();
        attack.failed(&*open());
        attack.pages_of_a_viommu();
        attack.background();
        attack.suspended();
        attack.closed();
        let (tallies, last) = attack.ends(open());
        print(driver, &tallies);
        assert_eq!(tallies, expected(last));
    });
}
