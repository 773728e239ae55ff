//! After a failure the IOMMU holds exactly what is promised, according to its own page tables.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use super::Memory;
use super::cases::PAGE;
use super::common::hooked::{Hooked, Hooks};
use super::common::memory::RealMemory;
use super::common::{CUT, ENTRY, Piece, Space, Step, drive};
use super::kernel::{self, Driver};
use super::run::{Hva, Target};
use super::witness::{self, PageTables, Translation, Translations, assert_same};
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::{Backend, Capabilities, Mapping};
use vfio_fast_engine::error::{KernelResult, Unfinished};
use vfio_fast_engine::object::Object;
use vfio_fast_engine::region::{Kind, Perm};
use vfio_fast_engine::{Config, Engine, Errno, Result};

/// Errnos that the kernel itself does not return here.
const INJECTED: Errno = Errno(libc::EREMOTEIO);
const SECOND: Errno = Errno(libc::ENOLINK);

/// Mapped before the transaction: across [`CUT`] and several entries, read-only, and exact.
const BEFORE: &[Step] = &[
    map(0, 24, 1, Perm::ReadWrite, false),
    map(32, 8, 2, Perm::Read, false),
    map(48, 3, 1, Perm::ReadWrite, true),
];

/// Unmaps whole entries and parts of them, maps other memory there, and adds mappings: eight maps after five unmaps
/// (fewer where neighbours join), with enough memory in each to use several threads.
const TRANSACTION: &[Step] = &[
    Step::Unmap { start: 4, units: 16 },
    map(4, 16, 3, Perm::Read, false),
    Step::Unmap { start: 48, units: 3 },
    map(40, 24, 1, Perm::ReadWrite, false),
    Step::Unmap { start: 36, units: 4 },
];

/// Units of objects that can be missing from the memory of the transaction's maps.
const HOLES: [(u64, u64); 5] = [(3, 5), (3, 15), (1, 44), (1, 55), (1, 63)];
/// Units that the transaction maps and that were not mapped before: a foreign mapping may be there.
const IN_THE_WAY: [u64; 3] = [44, 55, 63];

const fn map(start: u64, units: u64, object: u64, perm: Perm, exact: bool) -> Step {
    Step::Map(Piece { start, units, object, offset: start, perm, kind: Kind::Ram, join: true, exact })
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The call did nothing.
    Refused(Errno),
    /// The unmap call succeeded, but returned another result.
    Lost(Errno),
}

/// Map and unmap calls, counted from 1 since the last reset, and those that fail.
#[derive(Debug, Default)]
struct Calls {
    made: u64,
    unmaps: u64,
    failing: Vec<(u64, Failure)>,
    callers: HashSet<ThreadId>,
}

/// Makes calls fail.
struct Failing {
    calls: Arc<Mutex<Calls>>,
}

impl Failing {
    fn note(&self, is_unmap: bool) -> Option<Failure> {
        let mut calls = lock(&self.calls);
        calls.made += 1;
        calls.unmaps += u64::from(is_unmap);
        calls.callers.insert(thread::current().id());
        calls.failing.iter().find(|(nth, _)| *nth == calls.made).map(|(_, failure)| *failure)
    }
}

impl Hooks for Failing {
    fn capabilities(&self, of_kernel: Capabilities) -> Capabilities {
        // The calls are counted individually.
        Capabilities { objects: false, exclusive: false, ..of_kernel }
    }

    fn map(&self, kernel: &dyn Backend, mapping: &Mapping, object: Option<Object<'_>>) -> KernelResult<()> {
        match self.note(false) {
            Some(Failure::Refused(errno) | Failure::Lost(errno)) => Err(errno),
            None => kernel.map(mapping, object),
        }
    }

    fn unmap(&self, kernel: &dyn Backend, range: IovaRange) -> KernelResult<u64> {
        match self.note(true) {
            Some(Failure::Refused(errno)) => Err(errno),
            Some(Failure::Lost(errno)) => kernel.unmap(range).and(Err(errno)),
            None => kernel.unmap(range),
        }
    }
}

fn lock(calls: &Mutex<Calls>) -> MutexGuard<'_, Calls> {
    calls.lock().unwrap()
}

/// The failures of one run.
#[derive(Clone, Debug, Default)]
struct Trouble {
    failing: Vec<(u64, Failure)>,
    /// An object and a unit of it without memory.
    hole: Option<(u64, u64)>,
    /// A unit with a first page that is mapped already, by another user of the container.
    foreign: Option<u64>,
    huge_pages: bool,
}

/// The outcome of one run.
struct Came {
    made: u64,
    unmaps: u64,
    callers: usize,
    failed: bool,
    poisoned: bool,
}

/// Tests every single failing call, pairs of them, lost results, missing memory, and foreign mappings.
pub fn nothing_is_left_by(driver: Driver) {
    let tables = PageTables::of(&kernel::device_name()).expect("VT-d, which shows its page tables");
    let run = |trouble: Trouble| run(driver, &tables, &trouble);
    let untroubled = run(Trouble::default());
    assert!(!untroubled.failed);
    let unmaps = if driver == Driver::Iommufd { 5 } else { 3 };
    assert_eq!((untroubled.unmaps, untroubled.made), (unmaps, unmaps + 8));
    let (mut runs, mut callers, mut poisoned) = (1, untroubled.callers, 0);
    let mut count = |came: &Came| {
        runs += 1;
        callers = callers.max(came.callers);
        poisoned += u64::from(came.poisoned);
    };
    for nth in 1..=untroubled.made {
        let first = (nth, Failure::Refused(INJECTED));
        for huge_pages in [false, true] {
            let came = run(Trouble { failing: vec![first], huge_pages, ..Trouble::default() });
            assert!(came.failed && !came.poisoned, "call {nth} fails");
            count(&came);
        }
        let second = (nth + 1, Failure::Refused(SECOND));
        let came = run(Trouble { failing: vec![first, second], ..Trouble::default() });
        assert!(came.failed, "calls {nth} and {} fail", nth + 1);
        count(&came);
    }
    for nth in 1..=untroubled.unmaps {
        let failing = vec![(nth, Failure::Lost(INJECTED))];
        let came = run(Trouble { failing, ..Trouble::default() });
        assert!(came.poisoned, "what unmap {nth} did is not known");
        count(&came);
    }
    let holes = HOLES.map(|hole| Trouble { hole: Some(hole), ..Trouble::default() });
    let in_the_way = IN_THE_WAY.map(|unit| Trouble { foreign: Some(unit), ..Trouble::default() });
    for trouble in holes.into_iter().chain(in_the_way) {
        let came = run(trouble.clone());
        assert!(came.failed && !came.poisoned, "{trouble:?}");
        count(&came);
    }
    println!(
        "{runs} runs, {} calls in one, made by up to {callers} threads, {poisoned} poisoned",
        untroubled.made
    );
    assert_eq!(callers > 1, driver == Driver::Iommufd, "iommufd's calls are made from several threads");
}

fn run(driver: Driver, tables: &PageTables, trouble: &Trouble) -> Came {
    // New memory each time, because memory keeps the advice to use huge pages.
    let memory = RealMemory::new();
    let mut came = None;
    kernel::owned(driver, |kernel, ioctls, other| {
        let calls = Arc::<Mutex<Calls>>::default();
        let backend = Hooked { kernel, hooks: Failing { calls: calls.clone() } };
        let (cuts, huge_pages) = (vec![CUT], trouble.huge_pages);
        let config = Config {
            entry_size: ENTRY,
            cuts,
            huge_pages,
            threads: 8,
            oversubscribe: true,
            ..Config::default()
        };
        let engine = Engine::new(Box::new(backend), config).unwrap();
        came = Some(on_engine(engine, &calls, &memory, tables, trouble, &Foreign { ioctls, other }));
    });
    came.expect("it was run")
}

/// Another user of the container: a page of memory, and its mapping.
struct Foreign<'a> {
    ioctls: &'a dyn Target,
    other: Memory,
}

impl Foreign<'_> {
    fn map(&self, iova: u64) -> Translation {
        self.ioctls.map(iova, PAGE, Hva::Writable(0), true).expect("nothing is mapped there yet");
        Translation { physical: witness::physical_of(self.other.address(Hva::Writable(0))), writable: true }
    }

    fn unmap(&self, iova: u64) {
        assert_eq!(self.ioctls.unmap(iova, PAGE), Ok(PAGE), "closing takes away nothing of somebody else's");
    }
}

fn on_engine(
    engine: Engine,
    calls: &Mutex<Calls>,
    memory: &RealMemory,
    tables: &PageTables,
    trouble: &Trouble,
    foreign: &Foreign<'_>,
) -> Came {
    let mut space = Space::new(0);
    let nothing = Translations::new();
    assert_same("before anything is mapped", &nothing, &tables.read());
    transact(&engine, &mut space, BEFORE).expect("nothing fails yet");
    assert_same("before the transaction", &witness::wanted(&space), &tables.read());

    let in_the_way = trouble.foreign.map(|unit| (space.iova(unit), foreign.map(space.iova(unit))));
    if let Some((object, unit)) = trouble.hole {
        memory.protect(object, unit, libc::PROT_NONE);
    }
    *lock(calls) = Calls { failing: trouble.failing.clone(), ..Calls::default() };
    let before = space.clone();
    let committed = transact(&engine, &mut space, TRANSACTION);
    let Calls { made, unmaps, callers, .. } = std::mem::take(&mut *lock(calls));
    if let Some((object, unit)) = trouble.hole {
        memory.protect(object, unit, libc::PROT_READ | libc::PROT_WRITE);
    }
    if let Err(error) = &committed {
        let possible = match trouble {
            Trouble { hole: Some(_), .. } => vec![Errno::EFAULT],
            Trouble { foreign: Some(_), .. } => vec![Errno::EEXIST],
            // Of calls that fail concurrently, either may return first.
            _ => vec![INJECTED, SECOND],
        };
        assert!(possible.contains(&error.errno), "{trouble:?}: {error}");
        space = before.after_failure(TRANSACTION);
    }
    let poisoned = engine.info().poisoned;
    if !poisoned {
        let unfinished = committed.as_ref().err().and_then(|error| error.unfinished.as_deref());
        let mut wanted = match unfinished {
            None => witness::wanted(&space),
            Some(unfinished) => {
                assert!(trouble.failing.len() > 1, "one failure can be rolled back: {trouble:?}");
                left_as_told(&engine, &space, unfinished)
            }
        };
        if let Some((iova, translation)) = in_the_way {
            // The tables must also show a mapping that the engine did not make.
            let differences = witness::differences(&wanted, &tables.read());
            assert_eq!(differences.len(), 1, "one page of somebody else's: {differences:?}");
            wanted.insert(iova, translation);
        }
        assert_same(&format!("after {trouble:x?}"), &wanted, &tables.read());
    }
    let failed = committed.is_err();
    engine.close().expect("closing works");
    if let Some((iova, _)) = in_the_way {
        foreign.unmap(iova);
    }
    assert_same(&format!("closed after {trouble:x?}"), &nothing, &tables.read());
    Came { made, unmaps, callers: callers.len(), failed, poisoned }
}

/// What the IOMMU has to translate if a rollback could not do everything. Fails if the engine does not name all of the
/// difference to what is wanted.
fn left_as_told(engine: &Engine, space: &Space, unfinished: &Unfinished) -> Translations {
    let mappings: Vec<Mapping> = engine.entries().iter().map(|entry| entry.mapping()).collect();
    let difference = space.difference(&mappings);
    let told =
        |ranges: &[IovaRange], unit: &u64| ranges.iter().any(|range| range.contains(space.range(*unit, 1)));
    assert!(
        difference.left.iter().all(|unit| told(&unfinished.leftover, unit)),
        "{difference:?} {unfinished:?}"
    );
    assert!(
        difference.missing.iter().all(|unit| told(&unfinished.missing, unit)),
        "{difference:?} {unfinished:?}"
    );
    witness::mapped(&mappings)
}

fn transact(engine: &Engine, space: &mut Space, steps: &[Step]) -> Result<()> {
    engine.begin()?;
    for step in steps {
        assert!(space.apply(*step), "{step:?}");
        drive(engine, space, *step).expect("regions are only noted");
    }
    engine.commit().map(drop)
}
