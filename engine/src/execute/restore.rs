//! Maps what a rollback has to map: as much as possible, whatever fails.

use super::{Executor, is_unseen_device};
use crate::addr::IovaRange;
use crate::error::Errno;
use crate::reconcile::table::Entry;
use crate::region::Kind;

impl Executor<'_> {
    /// Maps each of the entries, without faulting memory in. Returns the entries of RAM that the kernel refused.
    pub fn map_each(&mut self, entries: &[Entry]) -> Vec<(Entry, Errno)> {
        let mut missing = Vec::new();
        let mut refused: Option<IovaRange> = None;
        for entry in entries {
            if refused.is_some_and(|region| region.contains(entry.range)) {
                continue;
            }
            let mut entry = *entry;
            let Err(errno) = self.map(&entry) else { continue };
            if is_unseen_device(&entry, errno) {
                self.found_device(&mut entry);
            }
            match entry.kind {
                Kind::Ram => missing.push((entry, errno)),
                // If the mapped part of the region cannot be unmapped, it stays mapped, and it is wanted.
                Kind::Device => refused = self.refuse(&entry, errno).ok(),
            }
        }
        missing
    }
}
