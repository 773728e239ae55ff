//! Tries again to unmap what could not be unmapped before.

use super::Engine;
use crate::addr::IovaRange;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::reconcile::table::Entry;

impl Engine {
    /// Unmaps the leftovers of earlier calls, and maps what is wanted of them again. Returns the number of bytes that
    /// were unmapped; after `Ok`, no leftover remains. What is wanted does not change.
    pub fn retry_unmap(&self) -> Result<u64> {
        let mut state = self.changing()?;
        if state.owner.is_some() {
            return Err(Error::check(Errno::EBUSY, ErrorKind::Transaction { open: true }));
        }
        if state.table.totals().leftovers == 0 {
            return Ok(0);
        }
        let left = state.table.iter().copied().filter(Entry::is_leftover);
        let mut scope: Vec<IovaRange> = left.map(|entry| entry.range).collect();
        match self.attempt(&mut state, &mut scope, None) {
            Ok(outcome) => {
                state.settle(&scope, &[]);
                self.record_commit(&outcome);
                self.record_state(&state);
                Ok(outcome.executed.unmap_bytes)
            }
            Err(error) => Err(self.fail(&mut state, &scope, error)),
        }
    }
}
