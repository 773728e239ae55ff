//! Commits that leave what is to be mapped to a job in the background.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Engine, Outcome, Phase, State};
use crate::addr::IovaRange;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::reconcile::plan::Plan;
use crate::sync::thread;
use crate::timeline;

impl Engine {
    /// Like [`Engine::commit`], but leaves what is to be mapped to a job: a thread that this starts, unless it runs
    /// already. What is no longer wanted is unmapped when this returns, the limits were checked, and what was mapped
    /// before and is still wanted is mapped.
    ///
    /// The job keeps the engine alive until it has ended, or until [`Engine::close`] or [`Engine::cancel`] ends it.
    pub fn commit_background(self: &Arc<Self>) -> Result<Outcome> {
        let _operation = timeline::operation("commit in the background");
        let mut state = self.end_transaction()?;
        let mut later = Vec::new();
        let outcome = self.reconcile_or_leave(&mut state, Some(&mut later))?;
        self.leave_to_job(state, &later);
        Ok(outcome)
    }

    /// Waits until nothing in `range`, or with `None` anywhere, is left to the job, or until the job has failed, which is
    /// this call's error. Returns `false` if that takes longer than `timeout`. If it returns `true` for everything, the
    /// job's thread has ended. If something is left, the job uses all its threads from then on, whatever `timeout` is.
    pub fn wait(&self, range: Option<IovaRange>, timeout: Option<Duration>) -> Result<bool> {
        let _operation = timeline::operation("wait for the job");
        self.log.deliver();
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.state();
        loop {
            state.usable()?;
            let phase = state.job.phase;
            let left = match range {
                Some(range) => state.backlog.overlaps(range),
                None => phase == Phase::Running || !state.backlog.is_empty(),
            };
            if !left {
                self.join_job(state);
                self.log.deliver();
                return Ok(true);
            }
            if phase != Phase::Running {
                let failed = state.job.error.clone();
                drop(state);
                self.log.deliver();
                return failed.map_or(Ok(true), Err);
            }
            if state.owner == Some(thread::current().id()) {
                return Err(Error::check(Errno::EBUSY, ErrorKind::Transaction { open: true }));
            }
            self.hurry_job(&mut state);
            let time = match deadline {
                None => None,
                Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                    Some(time) if !time.is_zero() => Some(time),
                    _ => return Ok(false),
                },
            };
            state.watching += 1;
            state.sleep(time);
            state.watching -= 1;
        }
    }

    /// Ends the job, running or failed. What it has not mapped is no longer wanted, and with `unmap` nor is what it has
    /// mapped, which is unmapped. After a job has succeeded, this does nothing.
    pub fn cancel(&self, unmap: bool) -> Result<()> {
        let _operation = timeline::operation("cancel the job");
        let mut state = self.changing()?;
        if state.owner.is_some() {
            return Err(Error::check(Errno::EBUSY, ErrorKind::Transaction { open: true }));
        }
        if !matches!(state.job.phase, Phase::Running | Phase::Failed) {
            return Ok(());
        }
        let mut gone: Vec<IovaRange> = state.backlog.iter().collect();
        if unmap {
            gone.extend(state.job.mapped.iter());
        }
        self.end_job(&mut state, Phase::Cancelled, None);
        for range in gone {
            // An exact region is one entry, which is mapped as a whole or left as a whole.
            let removed = state.wanted.remove(range);
            debug_assert!(removed.is_ok(), "what is left to the job is no part of an exact region");
        }
        let cancelled = self.reconcile(&mut state).map(drop);
        state.backlog.clear();
        self.join_job(state);
        cancelled
    }
}

impl State {
    /// Forgets what the open transaction has unmapped of what is left to the job, and of what the job has mapped.
    pub(super) fn forget_backlog(&mut self) {
        let Self { wanted, backlog, job, .. } = self;
        if backlog.is_empty() && job.mapped.is_empty() {
            return;
        }
        for range in wanted.unmapped() {
            backlog.remove(*range);
            job.mapped.remove(*range);
        }
    }
}

/// Takes out of the plan what can be mapped later, and returns it. What shares addresses with an entry that is unmapped
/// has to be mapped at once, and so has what is `missing`: a part of it was mapped, and devices may be using it.
pub(super) fn defer(plan: &mut Plan, missing: &[IovaRange]) -> Vec<IovaRange> {
    let mut later = Vec::new();
    let Plan { unmaps, maps, .. } = plan;
    maps.retain(|entry| {
        let next = unmaps.partition_point(|unmap| unmap.range.last() < entry.range.start());
        let now = unmaps.get(next).is_some_and(|unmap| unmap.range.overlaps(entry.range))
            || missing.iter().any(|range| range.overlaps(entry.range));
        if !now {
            later.push(entry.range);
        }
        now
    });
    later
}
