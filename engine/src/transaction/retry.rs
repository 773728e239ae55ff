//! Tries again to unmap what could not be unmapped before.

use super::Engine;
use crate::addr::IovaRange;
use crate::error::{Errno, Error, ErrorKind, Result};

impl Engine {
    /// Unmaps the entries that are not wanted as they are mapped, because the kernel refused to unmap them before, and
    /// maps what is wanted of them again. Returns the number of bytes that were unmapped; after `Ok`, no such entry is
    /// left. What is wanted does not change.
    pub fn retry_unmap(&self) -> Result<u64> {
        let mut state = self.changing()?;
        if state.owner.is_some() {
            return Err(Error::check(Errno::EBUSY, ErrorKind::Transaction { open: true }));
        }
        let left = state.table.iter().filter(|entry| !state.wanted.covers(entry, entry.range));
        let mut scope: Vec<IovaRange> = left.map(|entry| entry.range).collect();
        if scope.is_empty() {
            return Ok(0);
        }
        match self.attempt(&mut state, &mut scope) {
            Ok(outcome) => {
                self.record_commit(&outcome);
                self.record_state(&state);
                Ok(outcome.executed.unmap_bytes)
            }
            Err(error) => {
                self.fail(&mut state, &scope, &error);
                Err(error)
            }
        }
    }
}
