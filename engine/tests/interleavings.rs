//! Runs the job beside other calls in every order that a checker finds, with locks, condition variables and threads of
//! the checker in place of the system's (`engine/src/sync.rs`). A lost wake-up is a deadlock there, which it reports.
//!
//! Compiled to nothing without `--cfg vfio_fast_interleavings`: `cargo xtask test --only interleavings` runs it. When a
//! test fails, it prints a schedule; put `shuttle::replay(|| ..., "schedule")` in place of `explore` to run that again.
#![cfg(vfio_fast_interleavings)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::thread::{Scope, scope, yield_now};
use shuttle::{MaxSteps, Runner};
use vfio_fast_testing as common;

use common::hooked::{Hooked, Hooks};
use common::{assert_table, hva, ram};
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::sim::{Rules, Sim, SimConfig};
use vfio_fast_engine::backend::{Backend, Mapping};
use vfio_fast_engine::error::KernelResult;
use vfio_fast_engine::object::Object;
use vfio_fast_engine::region::{Backing, Region};
use vfio_fast_engine::{Config, Engine, Errno, NO_THREADS, Phase, Result};

/// Bytes of an entry: so many that a commit maps them without the lock.
const ENTRY: u64 = 4 << 20;

/// What the kernel does, for the checks of the tests.
#[derive(Default)]
struct Seen {
    /// The map calls that have begun and not ended.
    in_flight: Mutex<Vec<IovaRange>>,
    /// What was unmapped, and must not be mapped any more.
    gone: Mutex<Vec<IovaRange>>,
    mapped: AtomicUsize,
}

impl Seen {
    /// A call has returned that has unmapped `range` for good.
    fn is_gone(&self, sim: &Sim, range: IovaRange) {
        self.gone.lock().unwrap().push(range);
        let in_flight = self.in_flight.lock().unwrap();
        assert!(!in_flight.iter().any(|call| call.overlaps(range)), "in the hands of the kernel");
        assert!(!sim.mappings().iter().any(|mapping| mapping.range.overlaps(range)), "still mapped");
    }
}

/// Passes calls on with a look at them, and lets other threads run before and after.
struct Looking(Arc<Seen>);

impl Hooks for Looking {
    fn map(&self, kernel: &dyn Backend, mapping: &Mapping, object: Option<Object<'_>>) -> KernelResult<()> {
        let seen = &self.0;
        seen.in_flight.lock().unwrap().push(mapping.range);
        yield_now();
        let gone = seen.gone.lock().unwrap().iter().any(|range| range.overlaps(mapping.range));
        assert!(!gone, "{mapping:?} was unmapped");
        let answer = kernel.map(mapping, object);
        yield_now();
        seen.mapped.fetch_add(usize::from(answer.is_ok()), Ordering::Relaxed);
        seen.in_flight.lock().unwrap().retain(|range| *range != mapping.range);
        answer
    }
}

struct Bench {
    engine: Arc<Engine>,
    sim: Sim,
    seen: Arc<Seen>,
}

/// Entry `number` of the guest.
fn entries(first: u64, count: u64) -> Region {
    let (start, length) = (first * ENTRY, count * ENTRY);
    Region { hva: hva((1 << 46) + start), backing: Backing(1), join: true, ..ram(start, length) }
}

impl Bench {
    fn new(rules: Rules, failures: &[u64]) -> Self {
        let failures = failures.iter().map(|nth| (*nth, Errno::ENOMEM)).collect();
        let sim = Sim::new(SimConfig { rules, failures, ..SimConfig::default() });
        let seen = Arc::<Seen>::default();
        let backend = Hooked { kernel: Box::new(sim.clone()), hooks: Looking(Arc::clone(&seen)) };
        let config = Config { entry_size: ENTRY, threads: 1, ..Config::default() };
        Self { engine: Arc::new(Engine::new(Box::new(backend), config).unwrap()), sim, seen }
    }

    /// Commits the regions in the background; `false` if another thread has a transaction open.
    fn later(&self, regions: &[Region]) -> Result<()> {
        self.engine.begin()?;
        for region in regions {
            self.engine.map_region(*region)?;
        }
        self.engine.commit_background().map(drop)
    }

    fn waits(&self) -> Result<bool> {
        self.engine.wait(None, None)
    }

    /// Waits for everything, after which the thread of the job has ended.
    fn waits_for_the_thread(&self) {
        assert_eq!(self.waits(), Ok(true));
        assert_eq!(Arc::strong_count(&self.engine), 1, "the thread of the job has not ended");
    }

    fn unmaps(&self, region: Region) {
        if self.engine.unmap(region.range).is_ok() {
            self.seen.is_gone(&self.sim, region.range);
        }
    }

    /// The kernel has what is wanted.
    fn is_settled(&self) {
        let bytes = |ranges: &mut dyn Iterator<Item = u64>| ranges.sum::<u64>();
        let wanted = bytes(&mut self.engine.regions().iter().map(|region| region.range.length()));
        let mapped = bytes(&mut self.sim.mappings().iter().map(|mapping| mapping.range.length()));
        assert_eq!(wanted, mapped, "wanted and mapped");
        for mapping in self.sim.mappings() {
            assert_eq!(mapping.hva.raw(), (1 << 46) + mapping.range.start());
        }
        assert_table(&self.engine, &self.sim);
    }

    fn closes(&self) {
        self.engine.close().unwrap();
        assert!(self.seen.in_flight.lock().unwrap().is_empty(), "in the hands of the kernel");
        assert!(self.sim.mappings().is_empty(), "close left something mapped");
        assert_eq!(Arc::strong_count(&self.engine), 1, "the thread of the job has not ended");
    }
}

/// A test: what threads do, in a scope, once a job has been started for two entries.
type Story = for<'s> fn(&'s Scope<'s, '_>, &'s Bench);

/// Runs a story in many orders.
fn explore(failures: &'static [u64], story: Story, end: fn(&Bench)) {
    let run = move |scheduler: Box<dyn Scheduler + Send>, rules: Rules| {
        let mut config = shuttle::Config::new();
        config.max_steps = MaxSteps::FailAfter(5_000);
        // Closing, populating and asking for the limits use the stack of a whole thread.
        config.stack_size = 256 << 10;
        Runner::new(scheduler, config).run(move || {
            let bench = Bench::new(rules, failures);
            bench.later(&[entries(0, 2)]).unwrap();
            scope(|scope| story(scope, &bench));
            end(&bench);
            bench.closes();
        });
    };
    for rules in [Rules::Type1, Rules::Iommufd] {
        run(Box::new(DfsScheduler::new(Some(ORDERS), false)), rules);
        for depth in 1..=4 {
            run(Box::new(PctScheduler::new_from_seed(depth as u64, depth, ORDERS)), rules);
        }
        run(Box::new(RandomScheduler::new_from_seed(7, ORDERS)), rules);
    }
}

/// Orders that each scheduler tries.
const ORDERS: usize = 300;

fn all_is_mapped(bench: &Bench) {
    bench.waits_for_the_thread();
    bench.is_settled();
}

#[test]
fn all_that_wait_return_when_the_thread_has_ended() {
    let story: Story = |scope, bench| {
        for _ in 0..2 {
            scope.spawn(|| {
                bench.waits_for_the_thread();
                assert_eq!(bench.seen.mapped.load(Ordering::Relaxed), 2);
            });
        }
        scope.spawn(|| {
            let first = entries(0, 1).range;
            assert_eq!(bench.engine.wait(Some(first), None), Ok(true));
            assert!(bench.sim.mappings().iter().any(|mapping| mapping.range == first));
        });
    };
    explore(&[], story, all_is_mapped);
}

#[test]
fn what_is_unmapped_is_not_mapped_afterwards() {
    let story: Story = |scope, bench| {
        scope.spawn(|| bench.unmaps(entries(0, 1)));
        scope.spawn(|| bench.unmaps(entries(1, 1)));
        scope.spawn(|| assert_eq!(bench.waits(), Ok(true)));
    };
    explore(&[], story, all_is_mapped);
}

#[test]
fn commits_of_all_kinds_take_their_turns() {
    let story: Story = |scope, bench| {
        scope.spawn(|| {
            if bench.engine.map_region(entries(4, 1)).is_ok() {
                let there = |mapping: &Mapping| mapping.range == entries(4, 1).range;
                assert!(bench.sim.mappings().iter().any(there), "returned before it was mapped");
            }
        });
        scope.spawn(|| _ = bench.later(&[entries(8, 1)]));
        scope.spawn(|| {
            let page = Region { exact: true, ..ram(1 << 40, 4096) };
            let page = Region { hva: hva((1 << 46) + (1 << 40)), ..page };
            if bench.engine.map_region(page).is_ok() {
                bench.unmaps(page);
            }
        });
    };
    explore(&[], story, all_is_mapped);
}

#[test]
fn a_job_waits_for_transactions_and_goes_on() {
    let story: Story = |scope, bench| {
        scope.spawn(|| {
            bench.engine.begin().unwrap();
            bench.engine.unmap(entries(0, 1).range).unwrap();
            bench.engine.abort().unwrap();
        });
        scope.spawn(|| assert_eq!(bench.waits(), Ok(true)));
        scope.spawn(|| {
            let _ = bench.engine.completion_fd();
        });
    };
    explore(&[], story, all_is_mapped);
}

#[test]
fn a_job_that_is_cancelled_leaves_the_next_one_alone() {
    let story: Story = |scope, bench| {
        scope.spawn(|| _ = bench.engine.cancel(true));
        scope.spawn(|| _ = bench.later(&[entries(4, 1)]));
        scope.spawn(|| assert_eq!(bench.waits(), Ok(true)));
    };
    explore(&[], story, all_is_mapped);
    let story: Story = |scope, bench| {
        scope.spawn(|| _ = bench.engine.cancel(false));
        scope.spawn(|| _ = bench.later(&[entries(4, 1)]));
        scope.spawn(|| bench.unmaps(entries(1, 1)));
    };
    explore(&[], story, all_is_mapped);
}

#[test]
fn closing_ends_everything() {
    let story: Story = |scope, bench| {
        scope.spawn(|| bench.closes());
        scope.spawn(|| match bench.waits() {
            Ok(done) => assert!(done && bench.seen.mapped.load(Ordering::Relaxed) >= 2, "told too early"),
            Err(error) => assert_eq!(error.errno, Errno::ENOTRECOVERABLE),
        });
        scope.spawn(|| _ = bench.later(&[entries(4, 1)]));
    };
    explore(&[], story, |_| {});
    let story: Story = |scope, bench| {
        scope.spawn(|| bench.closes());
        scope.spawn(|| _ = bench.engine.begin());
        scope.spawn(|| _ = bench.engine.map_region(entries(4, 1)));
    };
    explore(&[], story, |_| {});
}

#[test]
fn a_poison_wakes_all() {
    let story: Story = |scope, bench| {
        scope.spawn(|| {
            let _ = bench.engine.begin();
            bench.engine.poison("as the test asks");
        });
        scope.spawn(|| match bench.waits() {
            Ok(done) => assert!(done),
            Err(error) => assert_eq!(error.errno, Errno::ENOTRECOVERABLE),
        });
        scope.spawn(|| _ = bench.engine.unmap(entries(0, 2).range));
    };
    explore(&[], story, |_| {});
}

#[test]
fn a_failure_is_told_to_all_and_can_be_mended() {
    for failures in [&[1][..], &[2]] {
        let failures: &'static [u64] = if failures[0] == 1 { &[1] } else { &[2] };
        let story: Story = |scope, bench| {
            scope.spawn(|| match bench.waits() {
                // Another call has unmapped what had failed, or the job that tried again has succeeded.
                Ok(done) => assert!(done),
                Err(error) => assert_eq!(error.errno, Errno::ENOMEM),
            });
            scope.spawn(|| bench.unmaps(entries(1, 1)));
            scope.spawn(|| _ = bench.later(&[entries(4, 1)]));
        };
        explore(failures, story, |bench| {
            // It may have failed after the last commit.
            if bench.waits().is_err() {
                assert_eq!(bench.engine.progress().phase, Phase::Failed);
                bench.later(&[]).unwrap();
            }
            all_is_mapped(bench);
        });
    }
}

#[test]
fn without_threads_the_calling_one_gives_way() {
    NO_THREADS.set(true);
    let story: Story = |scope, bench| {
        scope.spawn(|| _ = bench.later(&[entries(4, 2)]));
        scope.spawn(|| bench.unmaps(entries(0, 1)));
        scope.spawn(|| assert_eq!(bench.waits(), Ok(true)));
    };
    explore(&[], story, all_is_mapped);
}

/// The thread of a job that has ended may not have, when the next job gets none.
#[test]
fn a_thread_before_a_job_without_one_is_waited_for() {
    let story: Story = |scope, bench| {
        scope.spawn(|| {
            NO_THREADS.set(true);
            bench.later(&[entries(4, 2)]).unwrap();
            NO_THREADS.set(false);
        });
    };
    explore(&[], story, all_is_mapped);
}
