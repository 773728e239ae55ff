//! Closing an engine, which leaves nothing mapped.

use super::{Engine, Phase, State};
use crate::addr::IovaRange;
use crate::error::{Error, Op, Result, Unfinished};
use crate::log::Level;
use crate::object::Objects;
use crate::reconcile::plan;
use crate::reconcile::table::MapTable;
use crate::reconcile::wanted::WantedSet;
use crate::timeline;

impl Engine {
    /// Unmaps everything that is still mapped. A poisoned engine does not know what that is, and unmaps the whole
    /// container. So does one that the kernel contradicts now, which is an error as well.
    ///
    /// If the entries are handed over to another process, nothing is unmapped.
    ///
    /// If the last group has left a type1 container, the kernel has unmapped everything already, and this succeeds.
    ///
    /// A job in the background is cancelled. Calls that would change something fail from now on; the commit that runs
    /// is waited for.
    pub fn close(&self) -> Result<()> {
        let _operation = timeline::operation("close");
        let mut state = self.state();
        state.closed = true;
        state.settle_down();
        if state.job.phase == Phase::Running {
            self.end_job(&mut state, Phase::Cancelled, None);
        }
        let emptied = self.empty(&mut state);
        self.join_job(state);
        self.log.deliver();
        emptied
    }

    /// Unmaps everything, unless that was tried before.
    fn empty(&self, state: &mut State) -> Result<()> {
        if std::mem::replace(&mut state.emptied, true) {
            return Ok(());
        }
        state.backlog.clear();
        if state.suspended {
            // They belong to another process, and its devices use them.
            state.table = MapTable::default();
            return Ok(());
        }
        let emptied = if state.poison.take().is_some() {
            state.table = MapTable::default();
            self.unmap_container()
        } else {
            self.unmap_table(state).inspect_err(|_| {
                if state.contradicted && self.unmap_container().is_ok() {
                    state.table = MapTable::default();
                    self.record_state(state);
                }
            })
        };
        // Descriptors are needed for map calls only.
        state.objects = Objects::default();
        match emptied {
            Err(_) if self.backend.is_emptied() => {
                state.table = MapTable::default();
                self.record_state(state);
                Ok(())
            }
            emptied => emptied,
        }
    }

    /// Unmaps everything in the container, whoever mapped it.
    fn unmap_container(&self) -> Result<()> {
        let unmapped = timeline::call("unmap all", IovaRange::ALL, || self.backend.unmap_all());
        unmapped.map(drop).map_err(|errno| Error::kernel(Op::Unmap, errno))
    }

    /// Unmaps everything in the table.
    fn unmap_table(&self, state: &mut State) -> Result<()> {
        state.wanted = WantedSet::default();
        let Ok(plan) =
            plan::plan(&state.wanted, &state.table, &[IovaRange::ALL], &self.grid, self.gaps(state), None)
        else {
            return Ok(()); // Without a capacity there is always room.
        };
        let mut executor = self.executor(state, self.threads_for(&plan));
        executor.dirty = None;
        // Little memory in many entries, such as arrays of pages, is unmapped in a single call, which takes no longer
        // than other calls.
        let entries: u64 = plan.unmaps.iter().map(|unmap| unmap.entries).sum();
        let at_once = entries > 1 && plan.bytes() <= self.batch.bytes;
        let emptied = match at_once.then(|| executor.clear_all()) {
            None | Some(Ok(false)) => executor.run(&plan, None),
            Some(emptied) => emptied.map(drop),
        };
        let executed = executor.executed;
        self.record_executed(state, &executed);
        self.record_state(state);
        emptied.map_err(|error| {
            let leftover: Vec<IovaRange> = state.table.iter().map(|entry| entry.range).collect();
            if state.contradicted || leftover.is_empty() {
                return error;
            }
            let refused = Some(error.errno);
            let unfinished = Unfinished { leftover, refused, closing: true, ..Unfinished::default() };
            Error { unfinished: Some(Box::new(unfinished)), ..error }
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A second panic while one unwinds would abort the process; the kernel unmaps everything when the container
        // is closed.
        if std::thread::panicking() {
            return;
        }
        let emptied = self.empty(&mut self.state());
        if let Err(error) = emptied {
            self.log.write(Level::Error, format_args!("{error}"));
        }
    }
}
