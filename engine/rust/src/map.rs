//! Where callers promise that a device may access memory: the crate's whole memory-safety contract.

#![allow(unsafe_code, reason = "declares what a caller has to promise, and passes that on to the engine")]

use vfio_fast_engine::region;

use crate::range::range;
use crate::{Engine, Region, Result, Transaction};

impl Engine {
    /// Maps a region: the device can access it when this returns. To map several, use a transaction, which is faster
    /// and all or nothing.
    ///
    /// # Errors
    /// If this fails, no part of the region is mapped.
    /// - `EINVAL`: an address or the length is not a multiple of [`Engine::page_size`]; the length is 0; the region ends
    ///   past the end of an address space; a descriptor contradicts those of other regions with its backing, or has no
    ///   backing
    /// - `EEXIST`: the region overlaps one that is mapped
    /// - `EBUSY`: another thread has a transaction open
    /// - any error of [`Transaction::commit`], and for device memory the kernel's
    ///
    /// # Threads
    /// Any thread. Waits for other calls, unless they map elsewhere.
    ///
    /// # Safety
    /// An IOMMU lets a device access memory at any moment, past everything that Rust believes about it. From this call
    /// until an unmap of the region has succeeded (the commit, in a transaction), or [`Engine::close`] has:
    ///
    /// - **The memory stays mapped at its host address**, to the same pages: it is not unmapped, replaced by another
    ///   mmap or mremap, or discarded (`MADV_DONTNEED`, `MADV_REMOVE`, a truncated or punched file).
    /// - **There is no Rust reference to it** (`&`, `&mut`, a slice, a `Box`), and it is not part of a Rust allocation,
    ///   stack or static to which there could be one. Raw pointers with volatile or atomic accesses are fine, and so is
    ///   what vm-memory does. Of a region that the device only reads there may be shared references.
    /// - **The device may see all of it**, and overwrite it unless the region is [read-only](Region::read_only): every
    ///   byte up to the edges of its pages.
    ///
    /// If the unmap or the close fails, or the engine is dropped while a call of it panics, the promise holds until the
    /// container or the iommufd is closed.
    pub unsafe fn map(&self, region: &Region<'_>) -> Result<()> {
        // SAFETY: the caller promises what host_va() demands.
        let wanted = unsafe { region.vouched() }?;
        match &region.object {
            Some(object) => self.inner.map_object(wanted, object)?,
            None => self.inner.map_region(wanted)?,
        }
        Ok(())
    }
}

impl Transaction<'_> {
    /// Adds a region to what is mapped. The device can access it once the commit has succeeded.
    ///
    /// # Errors
    /// Those of [`Engine::map`] that need no call of the kernel. The transaction stays open, without the region.
    ///
    /// # Safety
    /// That of [`Engine::map`], from this call on. It ends when the transaction is aborted, or its commit fails with an
    /// error without a [leftover](crate::Error::leftover) and does not poison the engine.
    pub unsafe fn map(&mut self, region: &Region<'_>) -> Result<()> {
        // SAFETY: the caller makes the same promise; the engine's call is part of this thread's transaction.
        unsafe { self.engine.map(region) }
    }
}

impl Region<'_> {
    /// The region as the engine takes it.
    ///
    /// # Safety
    /// Whoever maps the result has the promise of [`Engine::map`].
    unsafe fn vouched(&self) -> Result<region::Region> {
        let &Self { iova, host, length, perm, kind, backing, join, exact, object: _ } = self;
        // SAFETY: this function's contract is that of host_va().
        let hva = unsafe { vfio_fast_engine::host_va(host) };
        Ok(region::Region { range: range(iova, length)?, hva, perm, kind, backing, join, exact })
    }
}
