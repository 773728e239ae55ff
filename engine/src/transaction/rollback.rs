//! What holds after a commit has failed: nothing that it added is wanted, nothing that it unmapped is wanted, and the
//! kernel's mappings are brought as close to that as the kernel allows.
//!
//! Two differences can remain, and both are known: an entry that could not be unmapped (a leftover), and RAM that could
//! not be mapped again (missing). Both are tried again by the next call that touches them.

use std::fmt::Write as _;

use super::{Engine, State};
use crate::addr::IovaRange;
use crate::error::{Error, Op, Unfinished};
use crate::execute::not_mapped;
use crate::log::Level;
use crate::preflight;
use crate::reconcile::plan::{self, Plan};
use crate::reconcile::table::Entry;
use crate::timeline;

impl Engine {
    /// Ends a commit that failed with `error`: restores the mappings in `scope` from before, except what the
    /// transaction unmapped. Returns the error for the caller.
    pub(super) fn fail(&self, state: &mut State, scope: &[IovaRange], error: Error) -> Error {
        self.log.write(Level::Error, format_args!("{error}"));
        state.wanted.roll_back_additions();
        self.counters.rollbacks.add(1);
        let error = self.restore(state, scope, error);
        state.forget_objects();
        self.counters.failed_commits.add(1);
        self.record_state(state);
        error
    }

    /// Makes the mappings in `scope` equal the wanted regions again, after `error`, as far as the kernel allows. Returns
    /// `error` with what is left, or if wanted RAM is not mapped any more, the error of that.
    pub(super) fn restore(&self, state: &mut State, scope: &[IovaRange], mut error: Error) -> Error {
        let _span = timeline::span("roll back");
        let (plan, held) = self.plan_rollback(state, scope);
        let gaps = self.gaps(state);
        let (capacity, contradicted) = (state.limits.entries, state.contradicted);
        let mut executor = self.executor(state, self.threads_for(&plan));
        let unmapped = executor.clear(&plan.unmaps);
        let mut unfinished = Unfinished { leftover: held, ..Unfinished::default() };
        let refused = plan.unmaps.iter().flat_map(|unmap| executor.table.overlapping(unmap.range));
        unfinished.leftover.extend(refused.map(|entry| entry.range));
        unfinished.leftover.sort_unstable();
        unfinished.leftover.iter().for_each(|range| executor.table.mark_leftovers(*range));
        unfinished.refused = unmapped.as_ref().err().map(|error| error.errno);
        let mut missing = Vec::new();
        if !contradicted && !executor.executed.contradicted {
            // What is left may map a part of what is wanted.
            let plan_for = |capacity| {
                let (wanted, table, grid) = (executor.wanted, &*executor.table, &self.grid);
                plan::plan_keeping(wanted, table, &plan.scope, grid, gaps, capacity, |entry, whole| {
                    whole || entry.is_leftover()
                })
            };
            if let Ok(mut plan) = plan_for(capacity).or_else(|_| plan_for(None)) {
                // What is left to the job was not mapped before.
                plan.maps.retain(|entry| !executor.backlog.contains(entry.range));
                missing = executor.map_each(&plan.maps);
            }
        }
        unfinished.missing = missing.iter().map(|(entry, _)| entry.range).collect();
        let executed = executor.executed;
        unfinished.devices = executed.refusals.iter().map(|refusal| refusal.region).collect();
        self.record_executed(state, &executed);
        self.record_refusals(&executed);
        self.log_executed(state, &executed);
        state.settle(&plan.scope, &unfinished.missing);
        if state.contradicted {
            let mut cause = error.to_string();
            if let Err(second) = unmapped {
                // Writing to a string cannot fail.
                let _ = write!(cause, "; and taking it back failed: {second}");
            }
            self.set_poison(state, cause);
            return error;
        }
        if unfinished.is_empty() {
            return error;
        }
        self.log
            .write(Level::Error, format_args!("The commit could not be rolled back completely{unfinished}"));
        let about_missing =
            error.op == Op::Map && missing.iter().any(|(entry, _)| Some(entry.range) == error.range);
        if let Some((entry, errno)) = missing.first().filter(|_| !about_missing) {
            // That a device lost access to memory is more important than what failed before.
            unfinished.first = Some(error.to_string());
            let maps: Vec<Entry> = missing.iter().map(|(entry, _)| *entry).collect();
            let explained = self.explained(state, not_mapped(entry, *errno), &maps, 0, &executed);
            // Also where a limit explains it: this was not found out by a check.
            error = Error { op: Op::Map, ..explained };
        }
        error.range = error.range.or(unfinished.leftover.first().copied());
        Error { unfinished: Some(Box::new(unfinished)), ..error }
    }

    /// Plans a rollback, and returns the entries that it does not touch although a part of them is no longer wanted:
    /// those with a rest that would not fit into the container, or would exceed RLIMIT_MEMLOCK.
    fn plan_rollback(&self, state: &State, scope: &[IovaRange]) -> (Plan, Vec<IovaRange>) {
        let gaps = self.gaps(state);
        let State { table, wanted, limits, .. } = state;
        let has_rest = |entry: &Entry| wanted.overlapping(entry.range).next().is_some();
        let around = |capacity, hold: bool| {
            plan::plan_keeping(wanted, table, scope, &self.grid, gaps, capacity, |entry, whole| {
                whole || hold && has_rest(entry)
            })
        };
        match around(limits.entries, false) {
            Ok(plan) if preflight::locked(&plan, &*self.backend).is_ok() => return (plan, Vec::new()),
            _ => {}
        }
        // Without a capacity there is always room.
        let all = around(None, false).unwrap_or_default();
        let gone = all.unmaps.iter().flat_map(|unmap| table.overlapping(unmap.range));
        let held = gone.filter(|entry| has_rest(entry)).map(|entry| entry.range).collect();
        (around(None, true).unwrap_or_default(), held)
    }
}

impl State {
    /// Adds to `scope` what an earlier commit left unfinished where this one touches it.
    pub(super) fn extend_scope(&self, scope: &mut Vec<IovaRange>) {
        if self.table.totals().leftovers > 0 {
            // An unmap of what is not wanted touches nothing but them.
            let unmapped = self.wanted.unmapped().iter().flat_map(|range| self.table.overlapping(*range));
            scope.extend(unmapped.filter(|entry| entry.is_leftover()).map(|entry| entry.range));
        }
        let touched = scope.len();
        for missing in &self.missing {
            if scope[..touched].iter().chain(self.wanted.unmapped()).any(|range| range.overlaps(*missing)) {
                scope.push(*missing);
            }
        }
    }

    /// Ends a commit that has made the mappings in `scope` what is wanted, except for `missing`.
    pub(super) fn settle(&mut self, scope: &[IovaRange], missing: &[IovaRange]) {
        self.missing.retain(|range| !scope.iter().any(|done| done.overlaps(*range)));
        self.missing.extend(missing);
    }
}
