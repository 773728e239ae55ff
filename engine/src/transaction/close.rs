//! Closing an engine, which leaves nothing mapped.

use super::Engine;
use crate::addr::IovaRange;
use crate::error::{Error, Op, Result};
use crate::log::Level;
use crate::reconcile::plan;
use crate::reconcile::table::MapTable;
use crate::reconcile::wanted::WantedSet;

impl Engine {
    /// Unmaps everything that is still mapped. A poisoned engine does not know what that is, and unmaps the whole
    /// container.
    pub fn close(self) -> Result<()> {
        self.empty()
    }

    fn empty(&self) -> Result<()> {
        let mut state = self.state();
        if state.poison.take().is_some() {
            state.table = MapTable::default();
            let emptied = self.backend.unmap_all().map(drop);
            return emptied.map_err(|errno| Error::kernel(Op::Unmap, errno));
        }
        state.wanted = WantedSet::default();
        let Ok(plan) =
            plan::plan(&state.wanted, &state.table, &[IovaRange::ALL], &self.grid, self.gaps(&state), None)
        else {
            return Ok(()); // Without a capacity there is always room.
        };
        let mut executor = self.executor(&mut state, self.threads_for(&plan));
        executor.dirty = None;
        // Little memory in many entries, such as arrays of pages, is unmapped in a single call, which takes no longer
        // than other calls.
        let entries: u64 = plan.unmaps.iter().map(|unmap| unmap.entries).sum();
        let at_once = entries > 1 && plan.bytes() <= self.batch.bytes;
        let emptied = match at_once.then(|| executor.clear_all()) {
            None | Some(Ok(false)) => executor.run(&plan, None),
            Some(emptied) => emptied.map(drop),
        };
        self.record_executed(&executor.executed);
        self.record_state(&state);
        emptied
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A second panic while one unwinds would abort the process; the kernel unmaps everything when the container
        // is closed.
        if std::thread::panicking() {
            return;
        }
        if let Err(error) = self.empty() {
            self.log.write(Level::Error, format_args!("{error}"));
        }
    }
}
