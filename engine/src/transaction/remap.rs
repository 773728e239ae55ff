//! Maps memory again whose pages were replaced.

use super::{Engine, State, memory};
use crate::addr::{HostVa, IovaRange};
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::reconcile::plan::Unmap;
use crate::reconcile::table::Entry;
use crate::region::Kind;
use crate::timeline;

impl Engine {
    /// Unmaps every entry that maps a byte of the `bytes` bytes at `hva`, and maps it again: the pages there were
    /// replaced, and devices still access the old ones. Returns the number of bytes that were mapped again.
    ///
    /// What is wanted does not change. A commit cannot do this, because it keeps what is mapped as wanted. Nothing is
    /// unmapped if the limits would not let all that is wanted of these entries be mapped again.
    pub fn remap(&self, hva: HostVa, bytes: u64) -> Result<u64> {
        let _operation = timeline::operation("remap");
        let mut state = self.changing()?;
        let refused = |errno, kind| Err(Error::check(errno, kind).at_hva(hva));
        if state.owner.is_some() {
            return refused(Errno::EBUSY, ErrorKind::Transaction { open: true });
        }
        let Some(last) = bytes.checked_sub(1).and_then(|more| hva.checked_add(more)) else {
            return refused(Errno::EINVAL, ErrorKind::BadRange);
        };
        let maps = |entry: &Entry| entry.hva <= last && hva <= entry.hva_at(entry.range.last());
        let unmaps: Vec<Unmap> = state.table.iter().filter(|entry| maps(entry)).map(alone).collect();
        if unmaps.is_empty() {
            return Ok(0);
        }
        let mut scope: Vec<IovaRange> = unmaps.iter().map(|unmap| unmap.range).collect();
        self.check_again(&mut state, &scope)?;
        let unmapped = self.execute_unmaps(&mut state, &unmaps);
        match unmapped.and_then(|()| self.attempt(&mut state, &mut scope, None)) {
            Ok(outcome) => {
                state.settle(&scope, &[]);
                self.record_commit(&outcome);
                self.record_state(&state);
                Ok(outcome.executed.map_bytes)
            }
            Err(error) => Err(self.fail(&mut state, &scope, error)),
        }
    }

    /// Fails if not all that is wanted of these entries could be mapped again: a part that is no longer wanted may have
    /// stayed mapped for want of entries, or a limit may have been lowered. Devices then keep their access.
    fn check_again(&self, state: &mut State, entries: &[IovaRange]) -> Result<()> {
        let plan = |state: &State| {
            memory::check_for_plan(self.planned(state, entries))?;
            self.plan_keeping(state, entries, |_, _| false)
        };
        self.asking_limits(state, plan).map(drop)
    }

    fn execute_unmaps(&self, state: &mut State, unmaps: &[Unmap]) -> Result<()> {
        let mut executor = self.executor(state, 1);
        let unmapped = executor.clear(unmaps);
        let executed = executor.executed;
        self.record_executed(state, &executed);
        unmapped
    }
}

/// The unmap of one entry.
fn alone(entry: &Entry) -> Unmap {
    let bytes = entry.range.length();
    let ram_bytes = if entry.kind == Kind::Ram { bytes } else { 0 };
    Unmap { range: entry.range, entries: 1, bytes, ram_bytes }
}
