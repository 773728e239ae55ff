//! Transactions.

use std::marker::PhantomData;
use std::mem::ManuallyDrop;

use crate::{Engine, Outcome, Result};

/// Changes of a memory map that are made together: [`Transaction::commit`] makes them, dropping the transaction
/// abandons them.
///
/// It belongs to the thread that began it. What other threads map or unmap meanwhile is refused with `EBUSY`; what the
/// same thread maps with [`Engine::map`] or unmaps with [`Engine::unmap`] becomes a part of the transaction.
///
/// ```
/// # use vfio_fast_dma::{Config, Engine, Region, sim};
/// # fn main() -> Result<(), vfio_fast_dma::Error> {
/// # let engine = Engine::sim(&sim::Container::new(sim::Driver::Type1), Config::new())?;
/// # let memory = std::ptr::without_provenance_mut(0x7f00_0000_0000);
/// let mut transaction = engine.begin()?;
/// // SAFETY: the model of the kernel accesses no memory.
/// unsafe { transaction.map(&Region::new(0, memory, 1 << 20))? };
/// drop(transaction);
/// assert_eq!(engine.stats().map_calls, 0);
/// # Ok(())
/// # }
/// ```
///
/// Another thread cannot get hold of it:
///
/// ```compile_fail,E0277
/// fn send<T: Send>() {}
/// send::<vfio_fast_dma::Transaction<'static>>();
/// ```
#[derive(Debug)]
#[must_use = "dropping a transaction abandons it"]
pub struct Transaction<'engine> {
    pub(crate) engine: &'engine Engine,
    /// The engine knows the thread that began it.
    of_thread: PhantomData<*const ()>,
}

impl Engine {
    /// Begins a transaction.
    ///
    /// # Errors
    /// - `EBUSY`: a transaction is open, of this thread or of another
    /// - `ENOTRECOVERABLE`: the engine is poisoned (see [`Info::poisoned`](crate::Info::poisoned))
    pub fn begin(&self) -> Result<Transaction<'_>> {
        self.inner.begin()?;
        Ok(Transaction { engine: self, of_thread: PhantomData })
    }
}

impl<'engine> Transaction<'engine> {
    /// Unmaps everything in `length` bytes from `iova` on; gaps are no error. Returns the number of bytes that were
    /// mapped there. The device may access them until the commit has succeeded.
    ///
    /// Regions that lie only partly in the range keep the rest.
    ///
    /// # Errors
    /// - `EINVAL`: `iova` or `length` is not a multiple of [`Engine::page_size`]; the length is 0; the range ends past
    ///   2^64; it covers only a part of a region that is [exact](crate::Region::exact)
    pub fn unmap(&mut self, iova: u64, length: u64) -> Result<u64> {
        self.engine.unmap(iova, length)
    }

    /// Checks the changes against every limit that can be read, without making them: locked memory, mappings of the
    /// container, addresses that the IOMMU translates, space in file systems. What this refuses, a commit refuses.
    ///
    /// # Errors
    /// Those of [`Transaction::commit`].
    pub fn check(&self) -> Result<()> {
        Ok(self.engine.inner.check_limits()?)
    }

    /// Makes the changes. Memory that stays mapped is not touched: it is not pinned again, and the device can access it
    /// throughout.
    ///
    /// # Errors
    /// What the transaction has added is not mapped then, and what was mapped before is, less what it has unmapped.
    /// [`Error::leftover`](crate::Error::leftover) and [`Error::missing`](crate::Error::missing) name what could not be
    /// restored.
    /// - `ENOMEM`: too little locked memory is allowed (`RLIMIT_MEMLOCK`), or the kernel has no memory
    /// - `ENOSPC`: the container has too few mappings left (`dma_entry_limit` of vfio_iommu_type1), or the file system
    ///   of the memory is full
    /// - `EINVAL`: a region lies outside the addresses that the IOMMU translates
    /// - `EFAULT`: memory of a region cannot be accessed; the error names the page
    /// - `EEXIST`: something else is mapped in the container at the same addresses
    /// - `ENOTRECOVERABLE`: the engine is poisoned: the kernel has contradicted its record
    /// - another errno of the kernel
    pub fn commit(self) -> Result<Outcome> {
        let engine = self.end();
        Ok(engine.inner.commit()?.into())
    }

    /// Like [`Transaction::commit`], but leaves what is to be mapped to a thread in the background. When this returns,
    /// limits were checked and what is no longer wanted is unmapped. No device can access a region before it is mapped:
    /// [`Engine::wait`] and [`Engine::completion_fd`] tell when that is so.
    ///
    /// # Errors
    /// Those of [`Transaction::commit`]; what fails in the background is the error of [`Engine::wait`].
    pub fn commit_in_background(self) -> Result<Outcome> {
        let engine = self.end();
        Ok(engine.inner.commit_background()?.into())
    }

    /// Abandons the changes, as dropping does.
    pub fn abort(self) {}

    /// The engine, which ends the transaction itself.
    fn end(self) -> &'engine Engine {
        ManuallyDrop::new(self).engine
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // A poisoned engine has ended it already.
        let _ = self.engine.inner.abort();
    }
}
