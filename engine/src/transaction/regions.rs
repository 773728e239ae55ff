//! Maps and unmaps regions and arrays of pages.

use super::lock::Locked;
use super::single::is_single_unmap;
use super::{Engine, State, memory};
use crate::addr::{HostVa, Iova, IovaRange};
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::explain;
use crate::object::{ObjectKind, ObjectRef};
use crate::reconcile::runs::runs;
use crate::region::{Backing, Kind, Perm, Region};

impl Engine {
    /// Maps a region: outside a transaction before this returns, inside one at the commit.
    pub fn map_region(&self, region: Region) -> Result<()> {
        self.map(region, None)
    }

    /// Maps a region that is a part of `object`. Some kernels can map an object although they refuse its host
    /// addresses, or can map it faster. All regions of one backing must be parts of one object, and each byte of the
    /// object must have one host address. BARs must be exact, because the kernel may have unmapped them.
    pub fn map_object(&self, region: Region, object: &ObjectRef<'_>) -> Result<()> {
        let is_bar = matches!(object.kind, ObjectKind::Bar { .. });
        self.map(Region { exact: region.exact || is_bar, ..region }, Some(object))
    }

    fn map(&self, region: Region, object: Option<&ObjectRef<'_>>) -> Result<()> {
        self.check(&region)?;
        let mut state = self.changing_only(region.range, |state| {
            self.is_single_map(state, &state.wanted.classified(region))
        })?;
        let object = object.filter(|_| self.backend.capabilities().objects);
        let accepted = object.map(|object| state.objects.check(&region, object, self.page())).transpose()?;
        insert(&mut state, region)?;
        if let Some(accepted) = accepted {
            state.objects.insert(accepted);
        }
        self.reconcile_or_refuse(state)
    }

    /// Maps RAM in pages of the smallest IOMMU page, each at its IOVA: all of them, or none if this fails. Outside a
    /// transaction they are mapped before this returns, inside one at the commit.
    ///
    /// Pages that are adjacent in the array, in IOVA space and in host memory form one region, which takes one entry
    /// and one map call: {1, 5, 6, 7, 9} are three. With `join`, these regions can also be joined with each other and
    /// with other regions, if the backing is known.
    pub fn map_pages(
        &self,
        pages: impl IntoIterator<Item = (Iova, HostVa), IntoIter: Clone>,
        perm: Perm,
        backing: Backing,
        join: bool,
    ) -> Result<()> {
        let pages = pages.into_iter();
        let mut state = self.changing()?;
        self.check_memory(pages.clone())?;
        let before = state.wanted.mark();
        for run in runs(pages, self.page()) {
            let added = range(run.iova.0, run.pages.saturating_mul(self.page())).and_then(|range| {
                let (hva, kind, exact) = (run.hva, Kind::Ram, false);
                let region = Region { range, hva, perm, kind, backing, join, exact };
                self.check(&region)?;
                insert(&mut state, region)
            });
            if let Err(error) = added {
                state.wanted.roll_back_to(before);
                return Err(error);
            }
        }
        if state.owner.is_none() && !join && self.map_singles(&mut state)? {
            return Ok(());
        }
        self.reconcile_or_refuse(state)
    }

    /// Unmaps everything in `range`: outside a transaction before this returns, inside one at the commit. Returns the
    /// number of bytes that were wanted there.
    pub fn unmap(&self, range: IovaRange) -> Result<u64> {
        let state = self.changing_only(range, |state| {
            state.wanted.on(range).is_some() && is_single_unmap(state, range)
        })?;
        self.unmap_each(state, [Ok(range)])
    }

    /// Unmaps these pages of the smallest IOMMU page: all of them, or none if this fails. Pages that are not wanted
    /// are ignored. Outside a transaction they are unmapped before this returns, inside one at the commit. Returns
    /// the number of bytes that were wanted there.
    ///
    /// To unmap a page in the middle of an entry, the engine unmaps the whole entry and maps the rest of it again.
    /// For a short time devices cannot access the rest, which
    /// [`Stats::remapped_bytes`](crate::stats::Stats::remapped_bytes) counts.
    pub fn unmap_pages(&self, iovas: impl IntoIterator<Item = Iova, IntoIter: Clone>) -> Result<u64> {
        // The host address does not matter here, so use the IOVA.
        let pages = iovas.into_iter().map(|iova| (iova, HostVa::from_raw(iova.0)));
        let state = self.changing()?;
        self.check_memory(pages.clone())?;
        self.unmap_each(
            state,
            runs(pages, self.page()).map(|run| range(run.iova.0, run.pages.saturating_mul(self.page()))),
        )
    }

    /// Fails with ENOMEM if there is too little memory to map or unmap these pages.
    fn check_memory(&self, pages: impl Iterator<Item = (Iova, HostVa)>) -> Result<()> {
        if pages.size_hint().0 as u64 <= memory::FEW {
            return Ok(());
        }
        memory::check_for(runs(pages, self.page()).count() as u64)
    }

    fn unmap_each(
        &self,
        mut state: Locked<'_>,
        ranges: impl IntoIterator<Item = Result<IovaRange>>,
    ) -> Result<u64> {
        let before = state.wanted.mark();
        let mut bytes = 0u64;
        for range in ranges {
            match range.and_then(|range| self.remove(&mut state, range)) {
                Ok(removed) => bytes = bytes.saturating_add(removed),
                Err(error) => {
                    state.wanted.roll_back_to(before);
                    return Err(error);
                }
            }
        }
        if state.owner.is_none() && !self.reconcile_single(&mut state)? {
            self.reconcile(&mut state)?;
        }
        Ok(bytes)
    }

    pub(super) fn remove(&self, state: &mut State, range: IovaRange) -> Result<u64> {
        let page = self.page();
        let end = range.last().wrapping_add(1);
        if let Some(value) = [range.start(), end].into_iter().find(|value| value & (page - 1) != 0) {
            return Err(Error::check(Errno::EINVAL, ErrorKind::Misaligned { value, page }).at(range));
        }
        let removed = state.wanted.remove(range);
        removed.map_err(|region| Error::check(Errno::EINVAL, ErrorKind::CutsExact { region }).at(range))
    }

    /// Checks the addresses and the length of a region.
    fn check(&self, region: &Region) -> Result<()> {
        let (page, range) = (self.page(), region.range);
        let refused = |kind| Err(refusal_of(region, Errno::EINVAL, kind));
        // If the length is aligned, the low bits of the last byte are all set.
        let length = range.last().wrapping_add(1).wrapping_sub(range.start());
        if let Some(value) =
            [range.start(), length, region.hva.raw()].into_iter().find(|v| v & (page - 1) != 0)
        {
            return refused(ErrorKind::Misaligned { value, page });
        }
        if range == IovaRange::ALL || region.hva.checked_add(range.length() - 1).is_none() {
            return refused(ErrorKind::BadRange);
        }
        Ok(())
    }

    /// Ends a call that added regions. Inside a transaction there is nothing left to do. Outside, no outcome is
    /// returned, so a refusal becomes the call's error, and the regions that the call added are removed.
    fn reconcile_or_refuse(&self, mut state: Locked<'_>) -> Result<()> {
        if state.owner.is_some() {
            return Ok(());
        }
        if self.reconcile_single(&mut state)? {
            return Ok(());
        }
        let added = state.wanted.touched().to_vec();
        let outcome = self.reconcile(&mut state)?;
        let Some(refusal) = outcome.executed.refusals.first() else { return Ok(()) };
        let error = explain::refusal(refusal, &state.limits, &state.table, &state.wanted);
        for range in &added {
            let removed = state.wanted.remove(*range);
            debug_assert!(removed.is_ok(), "what was inserted can be removed");
        }
        state.wanted.commit();
        let error = self.restore(&mut state, &added, error);
        state.forget_dirty(&added);
        state.forget_objects();
        self.record_state(&state);
        Err(error)
    }
}

fn insert(state: &mut State, region: Region) -> Result<()> {
    let inserted = state.wanted.insert(region);
    inserted.map_err(|with| refusal_of(&region, Errno::EEXIST, ErrorKind::Overlap { with }))
}

fn refusal_of(region: &Region, errno: Errno, kind: ErrorKind) -> Error {
    Error::check(errno, kind).at(region.range).at_hva(region.hva)
}

/// Creates a range from a start and a length.
pub fn range(iova: u64, length: u64) -> Result<IovaRange> {
    IovaRange::new(Iova(iova), length).ok_or_else(|| Error::check(Errno::EINVAL, ErrorKind::BadRange))
}
