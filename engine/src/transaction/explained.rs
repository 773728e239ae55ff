//! Adds the reason to the error of a commit.

use super::{Engine, State};
use crate::error::{Errno, Error, ErrorKind, Op};
use crate::execute::Executed;
use crate::explain::{self, Failed};
use crate::reconcile::plan::NoRoom;
use crate::reconcile::table::Entry;

impl Engine {
    /// Adds the reason to the error of a commit that maps `maps` and unmaps `unpins` bytes of RAM.
    pub(super) fn explained(
        &self,
        state: &mut State,
        error: Error,
        maps: &[Entry],
        unpins: u64,
        executed: &Executed,
    ) -> Error {
        if error.errno == Errno::EINVAL {
            // What is mapped next is checked against the limits that have refused this.
            self.ask_limits(state);
        }
        let State { table, wanted, .. } = state;
        let (mapped, unmapped) = (executed.map_bytes, executed.unmap_bytes);
        let backend = &*self.backend;
        let kernels = error.op == Op::Map;
        let error = explain::map(error, &Failed { backend, table, wanted, maps, unpins, mapped, unmapped });
        self.counters.preflight_refusals.add(u64::from(kernels && error.op == Op::Check));
        error
    }
}

impl State {
    /// The error of a plan that needs too many entries.
    pub(super) fn no_room(&self, room: NoRoom) -> Error {
        let held = explain::entries(&self.table, &self.wanted, &self.limits, room);
        Error::check(Errno::ENOSPC, ErrorKind::Entries(held))
    }
}
