//! Random calls beside a job whose map calls take random times, compared with a page-by-page oracle: at each moment the
//! kernel holds nothing but what is wanted, in the end all of it, and nothing that was unmapped is mapped afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::scope;
use std::time::Duration;

use proptest::prelude::*;
use vfio_fast_testing as common;

use common::hooked::{Hooked, Hooks};
use common::{CUT, ENTRY, Piece, Space, Step, UNIT, UNITS, assert_table, drive, hva, hva_of, keeping, ram};
use common::{ram_only, rules, transactions};
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::backend::{Backend, Mapping};
use vfio_fast_engine::error::KernelResult;
use vfio_fast_engine::object::Object;
use vfio_fast_engine::reconcile::table::Entry;
use vfio_fast_engine::region::{Backing, Region};
use vfio_fast_engine::{Config, Engine, Errno, Phase, Result};

/// An errno that the model itself does not return.
const INJECTED: Errno = Errno(libc::EREMOTEIO);

/// Makes calls of the job take up to a millisecond.
struct Slow {
    seed: AtomicU64,
}

impl Slow {
    fn delay(&self) {
        let seed = self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        match (seed ^ seed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 61 {
            0 => std::thread::sleep(Duration::from_micros(200)),
            1..=3 => std::thread::yield_now(),
            _ => {}
        }
    }
}

impl Hooks for Slow {
    fn map(&self, kernel: &dyn Backend, mapping: &Mapping, object: Option<Object<'_>>) -> KernelResult<()> {
        self.delay();
        let answer = kernel.map(mapping, object);
        self.delay();
        answer
    }
}

/// How a transaction ends, or what the caller does instead.
#[derive(Clone, Copy, Debug)]
enum End {
    Background,
    Commit,
    Abort,
    /// Each step is a call of its own.
    Singles,
}

/// What the caller does after a transaction.
#[derive(Clone, Copy, Debug)]
enum Then {
    Nothing,
    Wait(Option<u64>),
    WaitFor { start: u64, units: u64 },
    Cancel { unmap: bool },
    Remap { object: u64, unit: u64 },
    Look,
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![5 => Just(End::Background), 2 => Just(End::Commit), 1 => Just(End::Abort), 2 => Just(End::Singles)]
}

fn then() -> impl Strategy<Value = Then> {
    prop_oneof![
        4 => Just(Then::Nothing),
        1 => Just(Then::Wait(None)),
        2 => (0u64..3).prop_map(|ms| Then::Wait(Some(ms))),
        2 => (0..UNITS, 1u64..9).prop_map(|(start, units)| Then::WaitFor { start, units: units.min(UNITS - start) }),
        1 => any::<bool>().prop_map(|unmap| Then::Cancel { unmap }),
        1 => (1u64..4, 0..UNITS).prop_map(|(object, unit)| Then::Remap { object, unit }),
        2 => Just(Then::Look),
    ]
}

fn open(threads: usize, config: SimConfig, seed: u64) -> (Arc<Engine>, Sim) {
    let sim = Sim::new(config);
    let hooks = Slow { seed: AtomicU64::new(seed) };
    let backend = Box::new(Hooked { kernel: Box::new(sim.clone()), hooks });
    let config =
        Config { entry_size: ENTRY, cuts: vec![CUT], threads, oversubscribe: true, ..Config::default() };
    (Arc::new(Engine::new(backend, config).unwrap()), sim)
}

/// A caller, and what it knows.
struct Caller {
    engine: Arc<Engine>,
    sim: Sim,
    space: Space,
    /// The units that the job may not have mapped yet. Once mapped, they stay mapped.
    left: [bool; UNITS as usize],
    /// The units that were left to any job, less what was unmapped since: what a cancel may remove.
    ever_left: [bool; UNITS as usize],
    /// The same of the last commit in the background only.
    last_left: [bool; UNITS as usize],
    /// Whether a call is made to fail.
    fails: bool,
}

fn units(of: &[bool]) -> Vec<u64> {
    (0..UNITS).filter(|unit| of[*unit as usize]).collect()
}

impl Caller {
    fn new(threads: usize, config: SimConfig, seed: u64) -> Self {
        let fails = !config.failures.is_empty();
        let (engine, sim) = open(threads, config, seed);
        let [left, ever_left, last_left] = [[false; UNITS as usize]; 3];
        Self { engine, sim, space: Space::new(0), left, ever_left, last_left, fails }
    }

    /// The result of a call, unless it has failed as the test asks.
    fn unless_failed<T>(&self, answer: Result<T>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(error) => {
                assert!(self.fails && error.errno == INJECTED, "{error}");
                None
            }
        }
    }

    fn single(&mut self, step: Step) {
        let before = self.space.clone();
        let applies = self.space.apply(step);
        let answer = drive(&self.engine, &self.space, step);
        if !applies {
            assert!(answer.is_err(), "{step:?} succeeded");
            return;
        }
        if self.unless_failed(answer).is_none() && matches!(step, Step::Map(_)) {
            self.space = before;
            return;
        }
        self.note(step, false);
    }

    fn transact(&mut self, steps: &[Step], end: End) {
        if let End::Singles = end {
            for step in steps {
                self.single(*step);
                self.is_true();
            }
            return;
        }
        let before = self.space.clone();
        let cells = before.cells.clone();
        let mut applied = Vec::new();
        self.engine.begin().unwrap();
        for step in steps {
            let answer = drive(&self.engine, &self.space, *step);
            let applies = self.space.apply(*step);
            assert_eq!(answer.is_ok(), applies, "{step:?} answered {answer:?}");
            applied.extend(applies.then_some(*step));
        }
        let background = matches!(end, End::Background);
        let ended = match end {
            End::Abort => {
                self.engine.abort().unwrap();
                self.space = before;
                return self.is_true();
            }
            End::Background => self.engine.commit_background(),
            _ => self.engine.commit(),
        };
        let outcome = self.unless_failed(ended);
        if outcome.is_none() {
            self.space = before.after_failure(&applied);
            applied.retain(|step| matches!(step, Step::Unmap { .. }));
        }
        if background && outcome.is_some() {
            self.last_left = [false; UNITS as usize];
        }
        applied.into_iter().for_each(|step| self.note(step, background));
        if outcome.as_ref().is_some_and(|outcome| outcome.executed.map_calls > 0) {
            // What shares addresses with an entry that was unmapped was mapped at once.
            self.last_left = [false; UNITS as usize];
        }
        if background && outcome.is_some() {
            // What was mapped before, and is asked for again with the same memory, is kept and not left to the job.
            for (unit, left) in self.last_left.iter_mut().enumerate() {
                let now = self.space.cells[unit];
                *left &= !cells[unit].is_some_and(|cell| now.is_some_and(|now| now.is_mapped_as(&cell)));
            }
        }
        self.is_true();
    }

    fn note(&mut self, step: Step, left: bool) {
        let (start, units, left) = match step {
            Step::Map(Piece { start, units, .. }) => (start, units, left),
            Step::Unmap { start, units } => (start, units, false),
        };
        for all in [&mut self.left, &mut self.ever_left, &mut self.last_left] {
            all[start as usize..(start + units) as usize].fill(left);
        }
    }

    /// The kernel has nothing but what is wanted, and nothing that was not left to the job is missing.
    fn is_true(&mut self) {
        let difference = self.space.difference(&self.sim.mappings());
        let entries = self.engine.entries();
        let is_leftover = |unit: u64| {
            let of = |entry: &&Entry| entry.range.overlaps(self.space.range(unit, 1));
            self.fails && entries.iter().find(of).is_some_and(Entry::is_leftover)
        };
        let more: Vec<u64> = difference.left.into_iter().filter(|unit| !is_leftover(*unit)).collect();
        assert_eq!(more, [0; 0], "the kernel holds what is not wanted");
        let lost = difference.missing.iter().copied().filter(|unit| !self.left[*unit as usize]);
        assert_eq!(lost.collect::<Vec<_>>(), [0; 0], "what was not left to the job is not mapped");
        for unit in units(&self.left) {
            self.left[unit as usize] = difference.missing.contains(&unit);
        }
    }

    /// Everything is mapped.
    fn is_complete(&self) {
        if !self.fails {
            self.space.assert_mapped(&self.sim.mappings());
        }
        assert_eq!(self.space.difference(&self.sim.mappings()).missing, [0; 0]);
        assert_table(&self.engine, &self.sim);
    }

    fn follow(&mut self, then: Then) {
        let engine = &self.engine;
        match then {
            Then::Nothing => {}
            Then::Wait(ms) => {
                let waited = engine.wait(None, ms.map(Duration::from_millis));
                if self.unless_failed(waited) == Some(true) {
                    self.is_complete();
                }
            }
            Then::WaitFor { start, units } => {
                let waited = engine.wait(Some(self.space.range(start, units)), None);
                if self.unless_failed(waited).is_some() {
                    let missing = self.space.difference(&self.sim.mappings()).missing;
                    assert!(!missing.iter().any(|unit| (start..start + units).contains(unit)), "{missing:?}");
                }
            }
            Then::Cancel { unmap } => self.cancel(unmap),
            Then::Remap { object, unit } => {
                self.unless_failed(engine.remap(hva(hva_of(object, unit)), 2 * UNIT));
            }
            Then::Look => {
                let progress = engine.progress();
                assert!(progress.mapped_bytes <= progress.wanted_bytes);
                assert!(!engine.info().poisoned);
            }
        }
        self.is_true();
    }

    fn cancel(&mut self, unmap: bool) {
        self.unless_failed(self.engine.cancel(unmap));
        // No job has begun since.
        let cancelled = self.engine.progress().phase == Phase::Cancelled;
        let wanted = |unit: u64| {
            let range = self.space.range(unit, 1);
            self.engine.regions().iter().any(|region| region.range.overlaps(range))
        };
        let gone: Vec<u64> =
            (0..UNITS).filter(|unit| self.space.cells[*unit as usize].is_some() && !wanted(*unit)).collect();
        assert!(cancelled || gone.is_empty());
        for unit in &gone {
            let may = if unmap { self.ever_left } else { self.left };
            assert!(may[*unit as usize], "unit {unit} was not left to the job");
            // Exact regions are left, mapped and cancelled as a whole.
            self.space.cells[*unit as usize] = None;
        }
        if cancelled && unmap {
            assert!(units(&self.last_left).iter().all(|unit| gone.contains(unit)), "{gone:?}");
        }
        [self.left, self.ever_left, self.last_left] = [[false; UNITS as usize]; 3];
        self.is_complete();
    }

    fn end(mut self) {
        self.sim.reconfigure(|config| config.failures.clear());
        if self.unless_failed(self.engine.wait(None, None)).is_none() {
            assert_eq!(self.engine.progress().phase, Phase::Failed);
            // The next commit tries the rest again.
            self.transact(&[], End::Background);
            assert_eq!(self.engine.wait(None, None), Ok(true));
        }
        self.engine.retry_unmap().unwrap();
        self.fails = false;
        self.is_complete();
        // What is left of exact regions and of those that are joined is as after any other commits.
        self.space.assert_shape(&self.sim.mappings());
        self.engine.close().unwrap();
        assert!(self.sim.mappings().is_empty(), "close left something mapped");
        assert_eq!(Arc::strong_count(&self.engine), 1, "a thread of the job is left");
    }

    fn act(&mut self, transactions: &[Vec<Step>], ends: &[(End, Then)]) {
        for (steps, (end, then)) in transactions.iter().zip(ends) {
            self.transact(steps, *end);
            self.follow(*then);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_kernel_never_holds_more_than_what_is_wanted_and_all_of_it_in_the_end(
        transactions in transactions(),
        ends in prop::collection::vec((end(), then()), 12),
        rules in rules(),
        threads in 1usize..5,
        seed in any::<u64>(),
    ) {
        let mut caller = Caller::new(threads, keeping(rules), seed);
        caller.act(&transactions, &ends);
        caller.end();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Each call fails once, of the job or of a call that interrupts it.
    #[test]
    fn every_single_failure_beside_a_job_is_taken_back_or_told(
        transactions in transactions(),
        ends in prop::collection::vec((end(), then()), 12),
        rules in rules(),
        threads in 1usize..5,
        seed in any::<u64>(),
    ) {
        let transactions = ram_only(transactions);
        let mut caller = Caller::new(threads, keeping(rules), seed);
        caller.act(&transactions, &ends);
        let _ = caller.engine.wait(None, None);
        let calls = caller.sim.calls().len() as u64;
        caller.end();
        for nth in 1..=calls {
            let config = SimConfig { failures: vec![(nth, INJECTED)], ..keeping(rules) };
            let mut caller = Caller::new(threads, config, seed);
            caller.act(&transactions, &ends);
            caller.end();
        }
    }
}

/// Several threads map and unmap single entries, arrays of pages and large regions, each in a place of its own, while
/// another one keeps a job busy.
#[test]
fn callers_elsewhere_get_what_they_ask_for() {
    const PAGE: u64 = 4096;
    for rules in [Rules::Type1, Rules::Iommufd] {
        let (engine, sim) = open(2, keeping(rules), 1);
        let busy = AtomicBool::new(true);
        let at = |start: u64, length: u64, exact: bool| {
            let memory = hva((1 << 46) + start);
            Region { hva: memory, backing: Backing(2), exact, ..ram(start, length) }
        };
        let holds = |region: &Region| -> u64 {
            let inside = |mapping: &&Mapping| mapping.range.overlaps(region.range);
            sim.mappings().iter().filter(inside).map(|mapping| mapping.range.length()).sum()
        };
        scope(|scope| {
            for caller in 1..4u64 {
                let (engine, busy, holds, at) = (&engine, &busy, &holds, &at);
                scope.spawn(move || {
                    let mut round = 0;
                    while busy.load(Ordering::Relaxed) || round < 50 {
                        round += 1;
                        let large = round % 8 == 0;
                        let region = at(caller << 40, if large { 4 * ENTRY } else { PAGE }, !large);
                        let length = region.range.length();
                        until_free(|| engine.map_region(region));
                        assert_eq!(holds(&region), length, "returned before it was mapped");
                        until_free(|| engine.unmap(region.range).map(drop));
                        assert_eq!(holds(&region), 0, "returned before it was unmapped");
                    }
                });
            }
            let _done = Done(&busy);
            for round in 0..40u64 {
                let (gone, region) = (at(0, 32 * ENTRY, false), at(round % 8 * ENTRY, 24 * ENTRY, false));
                until_free(|| engine.begin());
                engine.unmap(gone.range).unwrap();
                engine.map_region(region).unwrap();
                engine.commit_background().unwrap();
                if round % 4 == 0 {
                    assert_eq!(engine.wait(None, None), Ok(true));
                    assert_eq!(holds(&gone), 24 * ENTRY);
                }
                if round % 8 == 5 {
                    until_free(|| engine.cancel(true));
                    let wanted = engine.regions().into_iter().filter(|all| all.range.overlaps(gone.range));
                    assert_eq!(holds(&gone), wanted.map(|region| region.range.length()).sum::<u64>());
                }
            }
        });
        assert_eq!(engine.wait(None, None), Ok(true));
        assert_table(&engine, &sim);
        engine.close().unwrap();
        assert!(sim.mappings().is_empty());
    }
}

/// Tells the other threads that this one has ended, even by a panic.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Makes a call again until no other thread has a transaction open.
fn until_free(call: impl Fn() -> Result<()>) {
    while let Err(error) = call() {
        assert_eq!(error.errno, Errno::EBUSY, "{error}");
        std::thread::yield_now();
    }
}
