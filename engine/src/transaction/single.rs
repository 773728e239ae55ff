//! Commits of one region that is one entry, outside transactions: what vIOMMUs and virtio-mem map and unmap. Arrays of
//! pages that are one entry each are mapped in the same way.
//!
//! These commits are frequent and small, so their cost beside the kernel's call matters. They make no other system
//! call and allocate no memory, except for a node of a tree now and then. The plan would always be the one call.

use super::{Engine, State};
use crate::addr::IovaRange;
use crate::error::Result;
use crate::execute::not_mapped;
use crate::populate::MIN_PARALLEL_BYTES;
use crate::preflight;
use crate::reconcile::table::Entry;
use crate::reconcile::wanted::{Change, Wanted};
use crate::region::{Kind, Region};
use crate::sys::page::base_page;

impl Engine {
    /// Maps or unmaps the only region that a call outside a transaction has added or removed. Returns `false`, having
    /// done nothing, if that takes a plan.
    pub(super) fn reconcile_single(&self, state: &mut State) -> Result<bool> {
        let reconciled = match state.wanted.only_change() {
            Some(Change::Inserted(wanted)) if self.is_single_map(state, &wanted.region) => {
                self.map_single(state, &wanted)
            }
            Some(Change::Removed(Wanted { region, .. })) if is_single_unmap(state, region.range) => {
                self.unmap_single(state, &region)
            }
            _ => return Ok(false),
        };
        reconciled.map(|()| true)
    }

    /// Whether a region that was added becomes one new entry, is not faulted in ahead, and is within the limits as
    /// last read.
    pub(super) fn is_single_map(&self, state: &State, region: &Region) -> bool {
        let Region { range, kind, exact, .. } = *region;
        // Device memory can be refused, which is reported in another way. Below the size at which several threads
        // share the work, faulting in ahead only moves it from the map call to another call.
        let small = range.length() <= base_page() || (exact && range.length() < MIN_PARALLEL_BYTES);
        let one_entry = exact || self.grid.pieces(range).nth(1).is_none();
        let reserved = match &state.running {
            Some(running) => Some(running.entries),
            None if state.backlog.is_empty() => Some(0),
            // What a job has still to map needs entries too, and a plan counts them.
            None => None,
        };
        let has_room = state.limits.entries.is_none_or(|entries| {
            reserved.is_some_and(|reserved| state.table.len().saturating_add(reserved) < entries)
        });
        kind == Kind::Ram
            && small
            && one_entry
            && has_room
            && preflight::translatable(&state.limits, range)
            && state.table.is_free(range)
    }

    fn map_single(&self, state: &mut State, wanted: &Wanted) -> Result<()> {
        let entry = Entry::of(&wanted.region, wanted.generation);
        self.map_entries(state, &[entry], &[entry.range])
    }

    /// Maps the entries of everything that a call outside a transaction has added, which are at `scope`: all or none.
    fn map_entries(&self, state: &mut State, entries: &[Entry], scope: &[IovaRange]) -> Result<()> {
        let mut executor = self.executor(state, 1);
        let failed = entries.iter().find_map(|entry| Some((entry, executor.map(entry).err()?)));
        let executed = executor.executed;
        self.record_executed(state, &executed);
        let Some((entry, errno)) = failed else {
            self.end_single(state);
            return Ok(());
        };
        // The kernel checks the limits as the preflight of a plan does. Reading them before each call would take longer
        // than the call.
        let error = self.explained(state, not_mapped(entry, errno), entries, 0, &executed);
        let error = self.fail(state, scope, error);
        state.forget_dirty(scope);
        Err(error)
    }

    /// Maps the regions that a call outside a transaction has added, if there are several and each becomes one entry.
    /// Returns `false`, having done nothing, if not. A plan would make the same calls, and take longer to make than they
    /// do.
    pub(super) fn map_singles(&self, state: &mut State) -> Result<bool> {
        // A plan is executed by several threads where that is faster.
        if self.backend.capabilities().parallel || state.wanted.touched().len() < 2 {
            return Ok(false);
        }
        let added = state.wanted.touched().len() as u64;
        let room = |entries| state.table.len().saturating_add(added) <= entries;
        if !state.limits.entries.is_none_or(room) {
            return Ok(false);
        }
        let single = |change: &Change| match change {
            Change::Inserted(Wanted { region, generation, .. }) if self.is_single_map(state, region) => {
                Some(Entry::of(region, *generation))
            }
            _ => None,
        };
        let entries = state.wanted.changes().iter().map(single).collect::<Option<Vec<_>>>();
        let Some(entries) = entries else { return Ok(false) };
        let scope = state.wanted.touched().to_vec();
        self.map_entries(state, &entries, &scope).map(|()| true)
    }

    fn unmap_single(&self, state: &mut State, region: &Region) -> Result<()> {
        let range = region.range;
        state.job.mapped.remove(range);
        let mut executor = self.executor(state, 1);
        // Which of its pages are dirty no longer matters: nothing in the entry is wanted.
        executor.dirty = None;
        let unmapped = executor.unmap(range);
        let executed = executor.executed;
        self.record_executed(state, &executed);
        let unmapped = match unmapped {
            Ok(()) => {
                if !state.wanted.names(region.backing) {
                    state.objects.remove(region.backing);
                }
                self.end_single(state);
                Ok(())
            }
            Err(error) => Err(self.fail(state, &[range], error)),
        };
        state.forget_dirty(&[range]);
        unmapped
    }

    fn end_single(&self, state: &mut State) {
        state.wanted.commit();
        self.counters.commits.add(1);
        self.record_state(state);
    }
}

/// Whether the region in `range`, which is unmapped as a whole, is one entry.
pub(super) fn is_single_unmap(state: &State, range: IovaRange) -> bool {
    // The range that the call unmaps can have an entry besides that could not be unmapped before.
    state.table.on(range).is_some() && state.table.totals().leftovers == 0
}
