//! A naive oracle for the engine: a small IOVA space, unit by unit, and the operations that change it.
#![allow(unsafe_code, reason = "naming a host address is unsafe; see `region`")]

pub mod accepting;
pub mod callers;
pub mod child;
pub mod files;
pub mod hooked;
pub mod ioas;
pub mod memory;
pub mod pool;
pub mod seccomp;
pub mod supervise;
pub mod threads;

use proptest::prelude::*;
use vfio_fast_engine::addr::{HostVa, Iova, IovaRange};
use vfio_fast_engine::backend::Mapping;
use vfio_fast_engine::backend::sim::{Call, Rules, Sim, SimConfig};
use vfio_fast_engine::region::{Backing, Kind, Perm, Region};
use vfio_fast_engine::{Config, Engine, Error};

/// Bytes of one unit: a quarter of the first grid cell of [`engine_with`], an eighth of the smallest entry.
pub const UNIT: u64 = 256 << 10;
/// Units of the test space: 16 MiB.
pub const UNITS: u64 = 64;
/// The minimum entry size, which gives the small space many grid cells.
pub const ENTRY: u64 = 2 << 20;
/// The cut that [`engine_with`] names in addition, inside the first entry.
pub const CUT: u64 = 1 << 20;

/// Thread counts for tests: more than a small machine has CPUs.
pub const THREADS: [usize; 4] = [3, 4, 8, 64];

/// A region in units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub start: u64,
    pub units: u64,
    /// The number of the memory object; `offset` is the unit in it at which the piece begins.
    pub object: u64,
    pub offset: u64,
    pub perm: Perm,
    pub kind: Kind,
    pub join: bool,
    pub exact: bool,
}

/// One call of the caller.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Map(Piece),
    Unmap { start: u64, units: u64 },
}

/// What the oracle records for one unit: host address, permission, the region that it belongs to, and the exact region
/// that it belongs to (0: none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    pub hva: u64,
    pub perm: Perm,
    pub object: u64,
    pub kind: Kind,
    pub region: u64,
    pub join: bool,
    pub exact: u64,
}

impl Cell {
    /// Whether an entry that maps `other` maps this one as well.
    pub fn is_mapped_as(&self, other: &Self) -> bool {
        Self { region: other.region, join: other.join, ..*self } == *other
    }
}

/// Whether one entry may map all of these adjacent cells, which do not contradict each other.
fn may_be_one_entry(cells: &[Cell]) -> bool {
    let join = |cell: &Cell| cell.join && cell.exact == 0 && cell.kind == Kind::Ram;
    cells.iter().all(|cell| cell.region == cells[0].region) || cells.iter().all(join)
}

/// Units that are mapped and not wanted, and units that are wanted and not mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub left: Vec<u64>,
    pub missing: Vec<u64>,
}

/// The space, unit by unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    pub base: u64,
    pub cells: Vec<Option<Cell>>,
    regions: u64,
}

impl Space {
    /// An empty space that starts at `base`.
    pub fn new(base: u64) -> Self {
        Self { base, cells: vec![None; UNITS as usize], regions: 0 }
    }

    pub fn iova(&self, unit: u64) -> u64 {
        self.base.wrapping_add(unit * UNIT)
    }

    pub fn range(&self, start: u64, units: u64) -> IovaRange {
        IovaRange::new(Iova(self.iova(start)), units * UNIT).expect("inside the space")
    }

    pub fn region(&self, piece: Piece) -> Region {
        Region {
            range: self.range(piece.start, piece.units),
            hva: hva(hva_of(piece.object, piece.offset)),
            perm: piece.perm,
            kind: piece.kind,
            backing: Backing(piece.object),
            join: piece.join,
            exact: piece.exact,
        }
    }

    /// Applies a step according to the rules; returns `false` if the step is an error and changes nothing.
    pub fn apply(&mut self, step: Step) -> bool {
        match step {
            Step::Map(piece) => {
                let range = piece.start as usize..(piece.start + piece.units) as usize;
                if self.cells[range.clone()].iter().any(Option::is_some) {
                    return false;
                }
                let Piece { object, perm, kind, join, .. } = piece;
                self.regions += 1;
                let region = self.regions;
                let exact = if piece.exact { region } else { 0 };
                for unit in range {
                    let hva = hva_of(object, piece.offset + unit as u64 - piece.start);
                    self.cells[unit] = Some(Cell { hva, perm, object, kind, region, join, exact });
                }
                true
            }
            Step::Unmap { start, units } => {
                let range = start as usize..(start + units) as usize;
                let cut = |inside: usize, outside: Option<usize>| {
                    let exact =
                        |unit: usize| self.cells.get(unit).copied().flatten().map_or(0, |cell| cell.exact);
                    exact(inside) != 0 && outside.is_some_and(|outside| exact(outside) == exact(inside))
                };
                if cut(range.start, range.start.checked_sub(1)) || cut(range.end - 1, Some(range.end)) {
                    return false;
                }
                self.cells[range].fill(None);
                true
            }
        }
    }

    /// The space after a failed commit: everything wanted before, minus everything the transaction unmapped.
    pub fn after_failure(&self, applied: &[Step]) -> Self {
        let mut space = self.clone();
        for step in applied {
            if matches!(step, Step::Unmap { .. }) {
                space.apply(*step);
            }
        }
        space
    }

    /// The number of wanted units in this range.
    pub fn wanted_units(&self, start: u64, units: u64) -> u64 {
        self.cells[start as usize..(start + units) as usize].iter().flatten().count() as u64
    }

    /// The cells that a mapping covers.
    fn under(&self, mapping: &Mapping) -> &[Option<Cell>] {
        let first = mapping.range.start().wrapping_sub(self.base) / UNIT;
        let units = mapping.range.length() / UNIT;
        &self.cells[first as usize..(first + units) as usize]
    }

    /// Fails unless the kernel's mappings are exactly this space.
    pub fn assert_mapped(&self, kernel: &[Mapping]) {
        let difference = self.difference(kernel);
        assert_eq!(difference, Difference::default(), "the kernel holds something else than what is wanted");
    }

    /// What the kernel's mappings have more and less than this space. Fails if they map something else at a unit that
    /// is wanted.
    pub fn difference(&self, kernel: &[Mapping]) -> Difference {
        let mut held: Vec<Option<(u64, Perm)>> = vec![None; UNITS as usize];
        for mapping in kernel {
            let first = mapping.range.start().wrapping_sub(self.base) / UNIT;
            for unit in 0..mapping.range.length() / UNIT {
                let cell = &mut held[(first + unit) as usize];
                assert!(cell.is_none(), "two mappings of one IOVA: {kernel:?}");
                *cell = Some((mapping.hva.raw() + unit * UNIT, mapping.perm));
            }
        }
        let mut difference = Difference::default();
        for (unit, (held, wanted)) in held.into_iter().zip(&self.cells).enumerate() {
            let wanted = wanted.map(|cell| (cell.hva, cell.perm));
            match (held, wanted) {
                (Some(_), None) => difference.left.push(unit as u64),
                (None, Some(_)) => difference.missing.push(unit as u64),
                _ => assert_eq!(held, wanted, "the kernel maps something else at unit {unit}"),
            }
        }
        difference
    }

    /// Fails unless each exact region is one mapping, and no mapping crosses a grid cut, the boundary of an object, or
    /// that of a region that is not to be joined.
    pub fn assert_shape(&self, kernel: &[Mapping]) {
        for mapping in kernel {
            let cells: Vec<Cell> =
                self.under(mapping).iter().map(|cell| cell.expect("checked before")).collect();
            assert!(cells.iter().all(|cell| cell.object == cells[0].object && cell.exact == cells[0].exact));
            assert!(may_be_one_entry(&cells), "covers regions that are not to be joined: {mapping:?}");
            let (start, last) = (mapping.range.start(), mapping.range.last());
            if cells[0].exact != 0 {
                let whole = self.cells.iter().flatten().filter(|cell| cell.exact == cells[0].exact).count();
                assert_eq!(whole, cells.len(), "an exact region was cut: {mapping:?}");
            } else {
                assert_eq!(start / ENTRY, last / ENTRY, "crosses an entry boundary: {mapping:?}");
                assert!(start >= CUT || last < CUT, "crosses the caller's cut: {mapping:?}");
            }
        }
    }
}

/// Fails if a mapping was unmapped although all of its units are wanted as before and it may still be one mapping.
pub fn assert_untouched(before: &Space, after: &Space, kernel_before: &[Mapping], calls: &[Call]) {
    for mapping in kernel_before {
        let was: Vec<Cell> = before.under(mapping).iter().flatten().copied().collect();
        let now: Vec<Cell> = after.under(mapping).iter().flatten().copied().collect();
        let same = was.len() == now.len() && was.iter().zip(&now).all(|(was, now)| was.is_mapped_as(now));
        if same && may_be_one_entry(&now) {
            let touched =
                calls.iter().any(|call| matches!(call, Call::Unmap(range) if range.overlaps(mapping.range)));
            assert!(!touched, "{mapping:?} was unmapped though nothing about it changed");
        }
    }
}

/// The host address of an object's unit, in a range that nothing else uses and in which both ThreadSanitizer and
/// AddressSanitizer permit mappings: below 2 GiB. The heap of a program that is linked statically begins somewhere in the
/// first GiB.
pub fn hva_of(object: u64, offset: u64) -> u64 {
    0x5000_0000 + (object << 27) + offset * UNIT
}

/// A host address that is never read from or written to.
pub fn hva(address: u64) -> HostVa {
    // SAFETY: the model maps nothing and populate is off, so no device and no kernel accesses memory at this address.
    unsafe { vfio_fast_engine::host_va(address) }
}

/// The range of `length` bytes from `start` on.
pub fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(start), length).expect("inside the address space")
}

/// The host address of the RAM of [`ram`] at IOVA 0.
pub const RAM: u64 = 0x7f00_0000_0000;

/// RAM of a single object, at a constant offset between IOVA and host address. Adjacent regions of it are joined.
pub fn ram(start: u64, length: u64) -> Region {
    let (perm, kind, backing) = (Perm::ReadWrite, Kind::Ram, Backing(1));
    let hva = hva(RAM + (start & ((1 << 40) - 1)));
    Region { range: range(start, length), hva, perm, kind, backing, join: true, exact: false }
}

/// A configuration of the model with these rules.
pub fn keeping(rules: Rules) -> SimConfig {
    SimConfig { rules, ..SimConfig::default() }
}

/// The rules of either kernel driver.
pub fn rules() -> impl Strategy<Value = Rules> {
    prop_oneof![Just(Rules::Type1), Just(Rules::Iommufd)]
}

/// One thread, or more threads than there are CPUs.
pub fn threads() -> impl Strategy<Value = usize> {
    prop::sample::select([&[1], &THREADS[..]].concat())
}

/// An engine with eight threads on a model, and the model.
pub fn engine(config: SimConfig) -> (Engine, Sim) {
    engine_with(8, config)
}

/// An engine with that number of threads on a model, and the model.
pub fn engine_with(threads: usize, config: SimConfig) -> (Engine, Sim) {
    let sim = Sim::new(config);
    (engine_on(&sim, threads), sim)
}

/// An engine with that number of threads on that model.
pub fn engine_on(sim: &Sim, threads: usize) -> Engine {
    let config =
        Config { entry_size: ENTRY, cuts: vec![CUT], threads, oversubscribe: true, ..Config::default() };
    Engine::new(Box::new(sim.clone()), config).expect("the model always opens")
}

/// Applies a step to the engine.
pub fn drive(engine: &Engine, space: &Space, step: Step) -> Result<u64, Error> {
    match step {
        Step::Map(piece) => engine.map_region(space.region(piece)).map(|()| 0),
        Step::Unmap { start, units } => engine.unmap(space.range(start, units)),
    }
}

/// Fails unless the engine's table equals the kernel's mappings.
pub fn assert_table(engine: &Engine, sim: &Sim) {
    let table: Vec<Mapping> = engine.entries().iter().map(|entry| entry.mapping()).collect();
    assert_eq!(table, sim.mappings(), "the table differs from the kernel");
    let (stats, bytes) = (engine.stats(), table.iter().map(|mapping| mapping.range.length()).sum::<u64>());
    assert_eq!((stats.entries, stats.mapped_bytes), (table.len() as u64, bytes), "the statistics differ");
    assert_eq!(sim.locked(), bytes, "memory stays pinned");
}

prop_compose! {
    fn piece()(start in 0..UNITS)(
        start in Just(start),
        units in 1..=(UNITS - start),
        short in any::<bool>(),
        object in 1u64..4,
        shift in prop_oneof![4 => Just(0u64), 1 => 1u64..4],
        perm in prop_oneof![3 => Just(Perm::ReadWrite), 1 => Just(Perm::Read)],
        join in prop_oneof![3 => Just(true), 1 => Just(false)],
        exact in prop_oneof![3 => Just(false), 1 => Just(true)],
        kind in prop_oneof![5 => Just(Kind::Ram), 1 => Just(Kind::Device)],
    ) -> Piece {
        let units = if short { units.min(4) } else { units };
        // Offsets that follow the IOVA let neighbours join often.
        Piece { start, units, object, offset: start + shift, perm, kind, join, exact }
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => piece().prop_map(Step::Map),
        2 => (0..UNITS, 1..=UNITS).prop_map(|(start, units)| Step::Unmap { start, units: units.min(UNITS - start) }),
        1 => (0..UNITS, 1u64..4).prop_map(|(start, units)| Step::Unmap { start, units: units.min(UNITS - start) }),
    ]
}

/// Transactions of a few steps each, most of which overlap earlier changes.
pub fn transactions() -> impl Strategy<Value = Vec<Vec<Step>>> {
    prop::collection::vec(prop::collection::vec(step(), 0..6), 1..12)
}

/// The base of a space at the bottom (with the cut at [`CUT`]) or at the very top of 2^64.
pub fn base() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(0u64), 1 => Just((UNITS * UNIT).wrapping_neg())]
}

/// The same with RAM only. The kernel can refuse device memory without failing the commit.
pub fn ram_only(transactions: Vec<Vec<Step>>) -> Vec<Vec<Step>> {
    let ram = |step| match step {
        Step::Map(piece) => Step::Map(Piece { kind: Kind::Ram, ..piece }),
        unmap @ Step::Unmap { .. } => unmap,
    };
    transactions.into_iter().map(|steps| steps.into_iter().map(ram).collect()).collect()
}
