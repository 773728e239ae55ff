//! A caller of the engine, and what it knows.

use std::sync::Arc;
use std::time::Duration;

use vfio_fast_engine::addr::{Iova, IovaRange};
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::reconcile::table::Entry;
use vfio_fast_engine::region::{Backing, Perm};
use vfio_fast_engine::{Engine, Errno, Error, Phase, Result};
use vfio_fast_testing::{Piece, Space, Step, UNIT, UNITS, assert_table, drive, engine_on, hva, hva_of, ram};

use super::dirty::Dirty;
use super::{INJECTED, Memory, Operation, Setup, Span};

/// A transaction that is open: the space as it will be, and the steps that were no errors.
struct Open {
    space: Space,
    applied: Vec<Step>,
}

pub(super) struct Caller {
    engine: Arc<Engine>,
    sim: Sim,
    /// What is wanted, without the open transaction.
    space: Space,
    open: Option<Open>,
    /// The units that a job may not have mapped yet. Once mapped, they stay mapped.
    left: Vec<bool>,
    /// The units that were left to any job, less what was unmapped since: what a cancel may remove.
    ever_left: Vec<bool>,
    dirty: Option<Dirty>,
    threads: usize,
    page: u64,
    type1: bool,
    may_refuse: bool,
    fails: bool,
    /// Whether entries may be larger than the grid, because only a few fit.
    coarse: bool,
}

impl Caller {
    pub(super) fn new(setup: &Setup) -> Self {
        let config = setup.sim();
        let type1 = config.rules == Rules::Type1;
        let sim = Sim::new(config);
        let threads = setup.threads();
        let engine = Arc::new(engine_on(&sim, threads));
        assert_eq!(engine.page(), setup.page());
        let nothing = || vec![false; UNITS as usize];
        Self {
            engine,
            sim,
            space: Space::new(setup.base()),
            open: None,
            left: nothing(),
            ever_left: nothing(),
            dirty: None,
            threads,
            page: setup.page(),
            type1,
            may_refuse: setup.may_refuse(),
            fails: setup.fails,
            coarse: setup.entries.is_some(),
        }
    }

    pub(super) fn execute(&mut self, operation: &Operation) {
        match *operation {
            Operation::Map(memory) => self.step(Step::Map(memory.piece(!self.may_refuse)), false),
            Operation::Unmap(span) => self.step(unmap(span), false),
            Operation::MapPages(memory) => self.map_pages(memory),
            Operation::UnmapPages(span) => self.step(unmap(span), true),
            Operation::Misaligned { unit, bytes, unmap } => self.misaligned(unit, bytes, unmap),
            Operation::Begin => self.begin(),
            Operation::Check => {
                let checked = self.engine.check_limits();
                let Some(_) = self.open else { return refused(checked, Errno::EINVAL) };
                self.unless_refused(checked);
            }
            Operation::Commit => self.commit(false),
            Operation::CommitInBackground => self.commit(true),
            Operation::Abort => match self.open.take() {
                Some(_) => self.engine.abort().expect("a transaction is open"),
                None => refused(self.engine.abort(), Errno::EINVAL),
            },
            Operation::Wait { patiently } => self.wait(None, patiently),
            Operation::WaitFor(span) => self.wait(Some(span), true),
            Operation::Cancel { unmap } => self.cancel(unmap),
            Operation::Remap { object, unit, units } => {
                let (object, unit) = (1 + u64::from(object % 3), u64::from(unit) % UNITS);
                let remapped =
                    self.engine.remap(hva(hva_of(object, unit)), (1 + u64::from(units % 8)) * UNIT);
                self.outside(remapped);
            }
            Operation::Retry => {
                let retried = self.engine.retry_unmap();
                self.outside(retried);
            }
            Operation::HandOver => self.hand_over(),
            Operation::Track(on) => self.track(on),
            Operation::Write { unit, page } => self.write(unit, page),
            Operation::ReadDirty(span) => self.read_dirty(span),
            Operation::UnmapDirty(span) => self.unmap_dirty(span),
            Operation::Fail { after, errno } => {
                let at = self.sim.calls().len() as u64 + 1 + u64::from(after % 16);
                let errno = INJECTED[usize::from(errno) % INJECTED.len()];
                if self.fails {
                    self.sim.reconfigure(|config| config.failures.push((at, errno)));
                }
            }
        }
        self.is_true();
    }

    /// The result of a call that is right, unless it was refused for a reason that the input asked for.
    fn unless_refused<T>(&self, answer: Result<T>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(Error { errno, .. }) if self.fails && INJECTED.contains(&errno) => None,
            Err(Error { errno: Errno::ENOSPC | Errno::ENOMEM, .. }) if self.may_refuse => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The same for a call that a transaction excludes.
    fn outside<T: std::fmt::Debug>(&self, answer: Result<T>) -> Option<T> {
        if self.open.is_some() {
            refused(answer, Errno::EBUSY);
            return None;
        }
        self.unless_refused(answer)
    }

    fn begin(&mut self) {
        match self.open {
            Some(_) => refused(self.engine.begin(), Errno::EBUSY),
            None => {
                self.engine.begin().expect("no transaction is open");
                self.open = Some(Open { space: self.space.clone(), applied: Vec::new() });
            }
        }
    }

    /// Makes a change, in the transaction if one is open.
    fn step(&mut self, step: Step, by_pages: bool) {
        let space = self.open.as_ref().map_or(&self.space, |open| &open.space);
        let mut after = space.clone();
        let applies = after.apply(step);
        let answer = match step {
            Step::Map(piece) if by_pages => {
                let hva = |unit: u64| hva_of(piece.object, piece.offset + unit - piece.start);
                let pages = pages(space, self.page, piece.start, piece.units);
                let pages = pages.map(|(iova, unit, offset)| (iova, self::hva(hva(unit) + offset)));
                self.engine.map_pages(pages, piece.perm, Backing(piece.object), piece.join).map(|()| 0)
            }
            Step::Unmap { start, units } if by_pages => {
                self.engine.unmap_pages(pages(space, self.page, start, units).map(|(iova, ..)| iova))
            }
            step => drive(&self.engine, space, step),
        };
        if !applies {
            let errno = if matches!(step, Step::Map(_)) { Errno::EEXIST } else { Errno::EINVAL };
            return refused(answer, errno);
        }
        let removed = match step {
            Step::Unmap { start, units } => space.wanted_units(start, units) * UNIT,
            Step::Map(_) => 0,
        };
        if let Some(open) = &mut self.open {
            assert_eq!(answer, Ok(removed), "{step:?}");
            open.space = after;
            open.applied.push(step);
            return;
        }
        match self.unless_refused(answer) {
            Some(bytes) => assert_eq!(bytes, removed, "{step:?}"),
            None if matches!(step, Step::Map(_)) => return,
            None => {}
        }
        self.space = after;
        self.note(step, false);
    }

    fn map_pages(&mut self, memory: Memory) {
        let piece = memory.piece(false);
        self.step(Step::Map(Piece { units: piece.units.min(4), exact: false, ..piece }), true);
    }

    fn misaligned(&mut self, unit: u8, bytes: u16, unmap: bool) {
        let (at, bytes) = (self.space.iova(u64::from(unit) % UNITS), u64::from(bytes));
        let Some(range) = IovaRange::new(Iova(at), bytes).filter(|_| bytes % self.page != 0) else { return };
        if unmap {
            refused(self.engine.unmap(range), Errno::EINVAL);
        } else {
            let region = vfio_fast_engine::region::Region { range, ..ram(0, UNIT) };
            refused(self.engine.map_region(region), Errno::EINVAL);
        }
    }

    fn commit(&mut self, background: bool) {
        let ended = if background { self.engine.commit_background() } else { self.engine.commit() };
        let Some(Open { space, mut applied }) = self.open.take() else {
            return refused(ended, Errno::EINVAL);
        };
        if self.unless_refused(ended).is_some() {
            self.space = space;
        } else {
            self.space = self.space.after_failure(&applied);
            applied.retain(|step| matches!(step, Step::Unmap { .. }));
        }
        applied.into_iter().for_each(|step| self.note(step, background));
    }

    fn note(&mut self, step: Step, left: bool) {
        let (start, units, left) = match step {
            Step::Map(Piece { start, units, .. }) => (start, units, left),
            Step::Unmap { start, units } => (start, units, false),
        };
        let units = start as usize..(start + units) as usize;
        self.left[units.clone()].fill(left);
        self.ever_left[units.clone()].fill(left);
        if let (Some(dirty), Step::Unmap { .. }) = (&mut self.dirty, step) {
            units.for_each(|unit| dirty.may_be_lost(unit as u64));
        }
    }

    fn wait(&mut self, span: Option<Span>, patiently: bool) {
        let range = span.map(|span| self.space.range(span.start(), span.units()));
        let waited = self.engine.wait(range, (!patiently).then_some(Duration::ZERO));
        if let (Some(_), Err(Error { errno: Errno::EBUSY, .. })) = (&self.open, &waited) {
            // The job does not work meanwhile.
            return;
        }
        if self.unless_refused(waited) != Some(true) {
            return;
        }
        let (start, units) = span.map_or((0, UNITS), |span| (span.start(), span.units()));
        self.left[start as usize..(start + units) as usize].fill(false);
        if span.is_none() {
            assert_table(&self.engine, &self.sim);
        }
    }

    fn cancel(&mut self, unmap: bool) {
        let cancelled = self.engine.cancel(unmap);
        if self.open.is_some() {
            return refused(cancelled, Errno::EBUSY);
        }
        self.unless_refused(cancelled);
        let regions = self.engine.regions();
        for unit in 0..UNITS {
            let range = self.space.range(unit, 1);
            let wanted = regions.iter().any(|region| region.range.overlaps(range));
            let cell = &mut self.space.cells[unit as usize];
            if cell.is_some() && !wanted {
                let may = if unmap { &self.ever_left } else { &self.left };
                assert!(may[unit as usize], "unit {unit} was not left to the job");
                *cell = None;
                self.dirty.iter_mut().for_each(|dirty| dirty.may_be_lost(unit));
            }
        }
        if self.engine.progress().phase == Phase::Cancelled {
            self.left.fill(false);
            self.ever_left.fill(false);
        }
    }

    /// Lets another engine on the same container take over, or if that fails, the first one go on.
    fn hand_over(&mut self) {
        let busy = self.open.is_some() || self.dirty.is_some() || self.left.contains(&true);
        let suspended = self.engine.suspend();
        if busy && suspended.as_ref().is_err_and(|error| error.errno == Errno::EBUSY) {
            return;
        }
        if self.unless_refused(suspended).is_none() {
            return;
        }
        assert!(self.open.is_none() && self.dirty.is_none());
        refused(self.engine.begin(), Errno::EBUSY);
        let info = self.engine.info();
        if info.leftover_entries == 0 && info.missing_bytes == 0 {
            let entries = self.engine.entries();
            let list: Vec<(IovaRange, Perm)> =
                entries.iter().map(|entry| (entry.range, entry.perm)).collect();
            let new = Arc::new(engine_on(&self.sim, self.threads));
            new.begin().expect("it is new");
            for region in self.engine.regions() {
                new.map_region(region).expect("the first engine wants it");
            }
            let before = self.sim.mappings();
            let adopted = self.unless_refused(new.adopt(list)).is_some();
            assert_eq!(before, self.sim.mappings(), "nothing has changed, but something was mapped");
            if adopted {
                self.engine.close().expect("it unmaps nothing");
                assert_eq!(before, self.sim.mappings(), "another process uses what this one has unmapped");
                self.engine = new;
                self.left.fill(false);
                self.ever_left.fill(false);
                return assert_table(&self.engine, &self.sim);
            }
            assert!(new.entries().is_empty() && new.regions().is_empty() && !new.info().poisoned);
            new.close().expect("it has nothing");
        }
        self.sim.reconfigure(|config| config.failures.clear());
        self.engine.resume().expect("nothing was unmapped");
    }

    fn track(&mut self, on: bool) {
        let tracked = self.engine.track_dirty(on);
        if !self.type1 {
            return refused(tracked, Errno::EOPNOTSUPP);
        }
        tracked.expect("type1 tracks dirty pages");
        match (on, &self.dirty) {
            (true, None) => self.dirty = Some(Dirty::new(self.page)),
            (false, _) => self.dirty = None,
            _ => {}
        }
    }

    /// Lets a device write to a page, if it can.
    fn write(&mut self, unit: u8, page: u8) {
        let (unit, page) = (u64::from(unit) % UNITS, u64::from(page) % (UNIT / self.page));
        let Some(dirty) = self.dirty.as_mut().filter(|_| self.space.cells[unit as usize].is_some()) else {
            return;
        };
        let iova = self.space.iova(unit) + page * self.page;
        let byte = IovaRange::new(Iova(iova), 1).expect("inside the space");
        if self.sim.mappings().iter().any(|mapping| mapping.range.contains(byte)) {
            self.sim.write(iova);
            dirty.written(unit, page);
        }
    }

    fn read_dirty(&mut self, span: Span) {
        let range = self.space.range(span.start(), span.units());
        let mut bitmap = super::dirty::bitmap(span, self.page);
        let read = self.engine.read_dirty(range, &mut bitmap);
        let Some(dirty) = &mut self.dirty else {
            let errno = if self.type1 { Errno::EINVAL } else { Errno::EOPNOTSUPP };
            return refused(read, errno);
        };
        dirty.reported(span, &bitmap, read.is_ok());
        self.unless_refused(read);
    }

    fn unmap_dirty(&mut self, span: Span) {
        let mut after = self.space.clone();
        let applies = after.apply(unmap(span));
        let mut bitmap = super::dirty::bitmap(span, self.page);
        let range = self.space.range(span.start(), span.units());
        let unmapped = self.engine.unmap_dirty(range, &mut bitmap);
        if self.open.is_some() {
            return refused(unmapped, Errno::EBUSY);
        }
        let Some(dirty) = &mut self.dirty else {
            let errno = if self.type1 { Errno::EINVAL } else { Errno::EOPNOTSUPP };
            return refused(unmapped, errno);
        };
        if !applies {
            return refused(unmapped, Errno::EINVAL);
        }
        dirty.reported(span, &bitmap, unmapped.is_ok());
        let removed = self.space.wanted_units(span.start(), span.units()) * UNIT;
        self.unless_refused(unmapped).inspect(|bytes| assert_eq!(*bytes, removed));
        self.space = after;
        self.note(unmap(span), false);
    }

    /// The kernel has nothing but what is wanted, and lacks nothing but what is left to the job, except for what the
    /// engine reports as left or missing after a failure.
    fn is_true(&mut self) {
        let info = self.engine.info();
        assert!(!info.poisoned, "no answer has contradicted the table");
        assert_eq!(info.in_transaction, self.open.is_some());
        let difference = self.space.difference(&self.sim.mappings());
        let entries = self.engine.entries();
        let is_leftover = |unit: &u64| {
            let range = self.space.range(*unit, 1);
            self.may_refuse
                && entries.iter().find(|entry| entry.range.overlaps(range)).is_some_and(Entry::is_leftover)
        };
        let more: Vec<u64> = difference.left.into_iter().filter(|unit| !is_leftover(unit)).collect();
        assert_eq!(more, [0; 0], "the kernel holds what is not wanted");
        let lost: Vec<u64> =
            difference.missing.iter().copied().filter(|unit| !self.left[*unit as usize]).collect();
        let told = if self.fails { info.missing_bytes } else { 0 };
        assert!(
            lost.len() as u64 * UNIT <= told,
            "{lost:?} are not mapped, {told:#x} bytes are reported missing"
        );
        for unit in 0..UNITS {
            self.left[unit as usize] &= difference.missing.contains(&unit);
        }
    }

    pub(super) fn end(mut self) {
        if self.open.take().is_some() {
            self.engine.abort().expect("a transaction is open");
        }
        let SimConfig { dma_avail, memlock_limit, .. } = SimConfig::default();
        self.sim.reconfigure(|config| {
            *config = SimConfig { dma_avail, memlock_limit, failures: Vec::new(), ..config.clone() };
        });
        if self.unless_refused(self.engine.wait(None, None)).is_none() {
            assert_eq!(self.engine.progress().phase, Phase::Failed);
            // The next commit tries the rest again.
            self.engine.begin().expect("no transaction is open");
            self.engine.commit_background().expect("nothing is refused any more");
            assert_eq!(self.engine.wait(None, None), Ok(true));
        }
        self.engine.retry_unmap().expect("nothing is refused any more");
        self.left.fill(false);
        self.is_true();
        assert_table(&self.engine, &self.sim);
        let info = self.engine.info();
        assert_eq!(info.leftover_entries, 0);
        if info.missing_bytes == 0 {
            self.space.assert_mapped(&self.sim.mappings());
            if !self.coarse {
                self.space.assert_shape(&self.sim.mappings());
            }
        }
        self.engine.close().expect("nothing is refused any more");
        assert!(self.sim.mappings().is_empty(), "close left something mapped");
        assert_eq!(Arc::strong_count(&self.engine), 1, "a thread of the job is left");
    }
}

fn unmap(span: Span) -> Step {
    Step::Unmap { start: span.start(), units: span.units() }
}

/// The pages of some units: their IOVAs, units, and offsets in the units.
fn pages(space: &Space, page: u64, start: u64, units: u64) -> impl Iterator<Item = (Iova, u64, u64)> + Clone {
    let offsets = move || (0..UNIT).step_by(page as usize);
    (start..start + units)
        .flat_map(move |unit| offsets().map(move |offset| (Iova(space.iova(unit) + offset), unit, offset)))
}

/// Fails unless a call was refused with this errno.
fn refused<T: std::fmt::Debug>(answer: Result<T>, errno: Errno) {
    match answer {
        Err(error) if error.errno == errno => {}
        answer => panic!("returned {answer:?}, not {errno:?}"),
    }
}
