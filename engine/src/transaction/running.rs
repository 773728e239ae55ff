//! Commits that run without the lock. They fault memory in, which can take minutes. Calls that read the state or change
//! other entries do not wait for them.

use std::sync::{Mutex, PoisonError};

use super::lock::Locked;
use super::{Engine, State};
use crate::addr::IovaRange;
use crate::error::Result;
use crate::execute::{self, CallContext, Executed, Executor, Records};
use crate::populate::{self, PopulateOptions};
use crate::reconcile::plan::{Plan, merged};
use crate::sys::page::base_page;

/// A commit that runs while the state is not locked.
#[derive(Debug)]
pub(super) struct Running {
    /// Everything that it may change, ascending and disjoint: what the plan can change, the gaps that its unmap calls
    /// cover, and what its rollback would unmap.
    scope: Vec<IovaRange>,
    /// The number of entries that it still adds.
    pub entries: u64,
}

impl Running {
    fn new(state: &State, plan: &Plan) -> Self {
        let covered = plan.unmaps.iter().map(|unmap| unmap.range);
        let ranges = plan.scope.iter().copied().chain(covered).chain(state.wanted.unmapped().iter().copied());
        Self { scope: merged(ranges.collect()), entries: plan.maps.len() as u64 }
    }

    /// Whether the commit may change a byte of `range`.
    pub fn may_change(&self, range: IovaRange) -> bool {
        let next = self.scope.partition_point(|scope| scope.last() < range.start());
        self.scope.get(next).is_some_and(|scope| scope.overlaps(range))
    }
}

/// Locks the state for each record.
struct Shared<'a> {
    engine: &'a Engine,
    threads: usize,
    of_job: bool,
    executed: Mutex<Executed>,
}

impl Records for Shared<'_> {
    fn with<R>(&self, record: impl FnOnce(&mut Executor<'_>) -> R) -> R {
        let mut state = self.engine.state();
        let mut executor = self.engine.executor(&mut state, self.threads);
        // Locked only while the state is.
        let mut executed = self.executed.lock().unwrap_or_else(PoisonError::into_inner);
        executor.executed = std::mem::take(&mut *executed);
        executor.of_job = self.of_job;
        let mapped = executor.executed.map_bytes;
        let before = executor.table.len();
        let done = record(&mut executor);
        let added = executor.table.len().saturating_sub(before);
        *executed = executor.executed;
        if self.of_job {
            self.engine.show_mapped(executed.map_bytes.saturating_sub(mapped));
            if state.watching > 0 {
                self.engine.changed.notify_all();
            }
        }
        if let Some(running) = &mut state.running {
            running.entries = running.entries.saturating_sub(added);
        }
        done
    }
}

impl Engine {
    /// Executes a plan. If it faults memory in, it does so without the lock, and so it maps. Until it has ended, nothing
    /// changes that the plan may change or that it was made from.
    pub(super) fn execute(
        &self,
        state: &mut Locked<'_>,
        plan: &Plan,
        options: PopulateOptions<'_>,
    ) -> (Result<()>, Executed) {
        debug_assert!(state.running.is_none(), "what takes a plan waits for the commit before it");
        let of_job = options.control.is_some();
        if !takes_long(plan) {
            let mut executor = self.executor(state, options.threads);
            executor.of_job = of_job;
            let run = executor.run(plan, Some(options));
            return (run, executor.executed);
        }
        let objects = state.objects.of_entries(&plan.maps);
        let (backend, threads, cpus) = (&*self.backend, options.threads, options.cpus);
        let context = CallContext { backend, objects: &objects, threads, cpus, control: options.control };
        let shared = Shared { engine: self, threads, of_job, executed: Mutex::default() };
        let running = Running::new(state, plan);
        state.running = Some(running);
        let journal = state.wanted.suspend();
        let after_panic = |state: &mut State| {
            self.set_poison(state, "a panic".to_owned());
            self.end_running(state);
        };
        let run = state.unlocked(after_panic, || execute::run(plan, Some(options), context, &shared));
        state.wanted.resume(journal);
        self.end_running(state);
        // A call of another thread can have failed so that the table is no longer reliable.
        let run = run.and_then(|()| state.poisoned());
        (run, shared.executed.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn end_running(&self, state: &mut State) {
        state.running = None;
        self.changed.notify_all();
    }
}

/// Whether a plan maps memory that would be faulted in by several threads.
fn takes_long(plan: &Plan) -> bool {
    let page = base_page();
    let faults_in = plan.maps.iter().filter(|entry| entry.range.length() > page);
    let bytes = faults_in.fold(0u64, |sum, entry| sum.saturating_add(entry.range.length()));
    bytes >= populate::MIN_PARALLEL_BYTES
}
