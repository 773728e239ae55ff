//! Dirty pages: the pages that devices have written to. The kernel reports them by whole entries.

use super::{Engine, State};
use crate::addr::IovaRange;
use crate::backend::DirtyTracking;
use crate::error::{Errno, Error, ErrorKind, Op, Result};
use crate::execute::Batch;
use crate::reconcile::dirty_pages::{DirtyPages, bitmap_for, words_for};

impl State {
    /// Drops the dirty pages in `ranges` that are no longer wanted. Everything else that is dirty is still wanted.
    pub(super) fn forget_dirty(&mut self, ranges: &[IovaRange]) {
        let Some(dirty) = self.dirty.as_mut().filter(|dirty| !dirty.is_empty()) else { return };
        for range in ranges {
            let mut rest = Some(*range);
            for wanted in self.wanted.overlapping(*range) {
                let Some(open) = rest else { break };
                let (before, after) = open.without(wanted.region.range);
                before.into_iter().for_each(|gap| dirty.forget(gap));
                rest = after;
            }
            rest.into_iter().for_each(|gap| dirty.forget(gap));
        }
    }
}

impl Engine {
    /// Starts or stops tracking the pages that devices write to; no effect if it is already started or stopped. While
    /// it is on, [`Engine::read_dirty`] and [`Engine::unmap_dirty`] report every such page.
    pub fn track_dirty(&self, on: bool) -> Result<()> {
        let mut state = self.settled()?;
        if on {
            state.not_suspended()?;
        } else if state.suspended {
            // It was off already, and the container belongs to another process.
            return Ok(());
        }
        let tracking = self.tracking(None)?;
        tracking.track_dirty(on).map_err(|errno| not_told(None, errno))?;
        match (on, &state.dirty) {
            (true, None) => state.dirty = Some(DirtyPages::none(self.page())),
            (true, Some(_)) => {}
            (false, _) => state.dirty = None,
        }
        Ok(())
    }

    /// Sets the bits of the pages in `range` that were written to since the last report; other bits are unchanged.
    /// There is one bit per smallest IOMMU page, starting with the first page of `range`.
    ///
    /// The kernel reports whole entries only. Reported pages outside `range` are kept until a call covers them.
    pub fn read_dirty(&self, range: IovaRange, bitmap: &mut [u64]) -> Result<()> {
        let mut state = self.settled()?;
        let tracking = self.tracking(Some(range))?;
        self.check_bitmap(&state, range, bitmap)?;
        let batch = self.batch(state.dirty.is_some());
        let State { table, dirty, .. } = &mut *state;
        let Some(dirty) = dirty else { return Ok(()) };
        for call in calls(table.overlapping(range).map(|entry| entry.range), batch, self.page()) {
            if call.length() > tracking.max_bytes() {
                // The entry is too large for any bitmap.
                dirty.add_all(call);
            } else {
                let mut words = bitmap_for(call, self.page()).map_err(|errno| not_told(Some(call), errno))?;
                tracking.read_dirty(call, &mut words).map_err(|errno| not_told(Some(call), errno))?;
                dirty.add(call, &words);
            }
            // Move the bits after each call: the bits of a large guest would need more memory than the bitmap.
            call.intersection(range).into_iter().for_each(|part| dirty.take(part, range, bitmap));
        }
        dirty.take(range, range, bitmap);
        Ok(())
    }

    /// Like [`Engine::unmap`], but also sets the bits of the pages in `range` that were written to, as
    /// [`Engine::read_dirty`] does. Not available in a transaction, because memory unmapped there is unmapped only at
    /// the commit. If it fails, the bits of the pages that were unmapped are set.
    pub fn unmap_dirty(&self, range: IovaRange, bitmap: &mut [u64]) -> Result<u64> {
        let mut state = self.changing()?;
        if state.owner.is_some() {
            return Err(Error::check(Errno::EBUSY, ErrorKind::Transaction { open: true }).at(range));
        }
        self.tracking(Some(range))?;
        self.check_bitmap(&state, range, bitmap)?;
        let removed = self.remove(&mut state, range)?;
        let mut scope = state.wanted.touched().to_vec();
        let reconciled = self.reconcile_with_dirty(&mut state, &mut scope, None);
        if let Some(dirty) = &mut state.dirty {
            dirty.take(range, range, bitmap);
        }
        state.forget_dirty(&scope);
        reconciled.map(|_| removed)
    }

    /// Maximum size of one unmap call: while tracking is on, no more than one bitmap covers.
    pub(super) fn batch(&self, tracked: bool) -> Batch {
        match tracked.then(|| self.backend.dirty_tracking()).flatten() {
            Some(tracking) => Batch { bytes: self.batch.bytes.min(tracking.max_bytes()), ..self.batch },
            None => self.batch,
        }
    }

    fn tracking(&self, range: Option<IovaRange>) -> Result<&dyn DirtyTracking> {
        self.backend.dirty_tracking().ok_or_else(|| {
            let kind = ErrorKind::Other("this container does not track dirty pages");
            let error = Error::check(Errno::EOPNOTSUPP, kind).of(Op::Dirty);
            Error { range, ..error }
        })
    }

    fn check_bitmap(&self, state: &State, range: IovaRange, bitmap: &[u64]) -> Result<()> {
        let refused = |kind| Err(Error::check(Errno::EINVAL, kind).at(range));
        let (page, end) = (self.page(), range.last().wrapping_add(1));
        if let Some(value) = [range.start(), end].into_iter().find(|value| value & (page - 1) != 0) {
            return refused(ErrorKind::Misaligned { value, page });
        }
        if (bitmap.len() as u64) < words_for(range, page) {
            return refused(ErrorKind::Other("the bitmap has less than a bit for each page"));
        }
        if state.dirty.is_none() {
            return refused(ErrorKind::Other("dirty pages are not tracked"));
        }
        Ok(())
    }
}

/// Groups adjacent entries into calls, within the limits of `batch`. Each entry in a call begins with a word of the
/// bitmap. If one does not, type1 (6.12, 7.2) shifts the bits and does not clear those after its end, which are then
/// set from the second call on.
fn calls(entries: impl Iterator<Item = IovaRange>, batch: Batch, page: u64) -> Vec<IovaRange> {
    let mut calls: Vec<IovaRange> = Vec::new();
    for entry in entries {
        let joined = calls.last().copied().and_then(|last| {
            let follows = last.last().checked_add(1) == Some(entry.start());
            let aligned = (entry.start() - last.start()) % (page * u64::from(u64::BITS)) == 0;
            let range = IovaRange::from_bounds(last.start(), entry.last())?;
            (follows && aligned && range.length() <= batch.bytes).then_some(range)
        });
        match (joined, calls.last_mut()) {
            (Some(range), Some(last)) => *last = range,
            _ => calls.push(entry),
        }
    }
    calls
}

fn not_told(range: Option<IovaRange>, errno: Errno) -> Error {
    Error { range, ..Error::kernel(Op::Dirty, errno) }
}
