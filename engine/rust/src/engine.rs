//! The engine.

use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use vfio_fast_engine::backend::Backend;
use vfio_fast_engine::backend::iommufd::Iommufd;
use vfio_fast_engine::backend::type1::Type1;
use vfio_fast_engine::transaction;

use crate::config::Sink;
use crate::range::{inclusive, range};
use crate::{Config, Info, Level, Progress, Result, Stats};

/// Owns the DMA mappings of one container: a VFIO container with type1, or an IOAS of iommufd.
///
/// Any thread may call any method. Calls that change something wait for each other, but those for single regions go on
/// beside a commit that maps elsewhere. Only [`Transaction::commit_in_background`](crate::Transaction) leaves a thread
/// behind when it returns.
///
/// Dropping an engine closes it, and sends an error to the log of its [`Config`]. While a thread panics nothing is
/// unmapped; the kernel does that when the container is closed.
#[derive(Debug)]
pub struct Engine {
    pub(crate) inner: Arc<transaction::Engine>,
    log: Log,
}

/// Where an engine that is dropped sends its error.
struct Log(Option<Sink>);

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Log(set)" } else { "Log(none)" })
    }
}

impl Engine {
    /// An engine for a VFIO container: `/dev/vfio/vfio` with a group and `VFIO_TYPE1v2_IOMMU`. Nothing may be mapped in
    /// it, and nobody else may map in it.
    ///
    /// The descriptor is duplicated. Starts no thread.
    ///
    /// # Errors
    /// - `EINVAL`: the container has no IOMMU type; a value of the configuration is not allowed
    /// - `ENOTTY` or another errno of the kernel: `container` is no VFIO container
    /// - `EMFILE`: it cannot be duplicated
    pub fn type1(container: BorrowedFd<'_>, config: Config) -> Result<Self> {
        Self::open(Box::new(Type1::open(container)?), config)
    }

    /// An engine for the IOAS `ioas_id` of an open `/dev/iommu`. Nothing may be mapped in it where the engine maps.
    ///
    /// The descriptor is duplicated. Attach a device first: without one, the kernel checks and pins nothing until the
    /// first device is attached, and then everything on one thread. Starts no thread.
    ///
    /// # Errors
    /// - `EINVAL`: a value of the configuration is not allowed
    /// - `ENOENT`: there is no such IOAS
    /// - `ENOTTY` or another errno of the kernel: `iommufd` is no iommufd
    /// - `EMFILE`: it cannot be duplicated
    pub fn iommufd(iommufd: BorrowedFd<'_>, ioas_id: u32, config: Config) -> Result<Self> {
        Self::open(Box::new(Iommufd::open(iommufd, ioas_id)?), config)
    }

    /// An engine on a model of the kernel, for tests without a device.
    ///
    /// # Errors
    /// - `EINVAL`: a value of the configuration is not allowed
    #[cfg(feature = "sim")]
    pub fn sim(container: &crate::sim::Container, config: Config) -> Result<Self> {
        Self::open(Box::new(container.model.clone()), config)
    }

    fn open(backend: Box<dyn Backend>, config: Config) -> Result<Self> {
        let log = Log(config.log.clone());
        let inner = transaction::Engine::new(backend, config.into_engine()?)?;
        Ok(Self { inner: Arc::new(inner), log })
    }

    /// Unmaps everything in `length` bytes from `iova` on; gaps are no error. Returns the number of bytes that were
    /// mapped there. No device can access the range when this returns.
    ///
    /// Regions that lie only partly in the range keep the rest. Where the range ends inside one mapping of the kernel,
    /// that is unmapped and the rest mapped again; for a moment the device cannot access the rest.
    ///
    /// # Errors
    /// - `EINVAL`: those of [`Transaction::unmap`](crate::Transaction::unmap)
    /// - `EBUSY`: another thread has a transaction open
    /// - an errno of the kernel: [`Error::leftover`](crate::Error::leftover) names what is still mapped, and
    ///   [`Error::missing`](crate::Error::missing) what could not be mapped again
    pub fn unmap(&self, iova: u64, length: u64) -> Result<u64> {
        Ok(self.inner.unmap(range(iova, length)?)?)
    }

    /// Tries again to unmap what earlier calls could not ([`Info::leftover_entries`]). Returns the number of bytes that
    /// it unmapped; none is left then.
    ///
    /// # Errors
    /// - `EBUSY`: a transaction is open
    /// - that of the unmap call
    pub fn retry_unmap(&self) -> Result<u64> {
        Ok(self.inner.retry_unmap()?)
    }

    /// Waits until everything is mapped that was left to the background, at most for `timeout`. Returns whether it is.
    ///
    /// # Errors
    /// - the error of the map call that failed in the background
    /// - `EBUSY`: this thread has a transaction open
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool> {
        Ok(self.inner.wait(None, timeout)?)
    }

    /// The same for what was left of `length` bytes from `iova` on.
    ///
    /// # Errors
    /// Those of [`Engine::wait`], and `EINVAL` if the range is empty or ends past 2^64.
    pub fn wait_for(&self, iova: u64, length: u64, timeout: Option<Duration>) -> Result<bool> {
        Ok(self.inner.wait(Some(range(iova, length)?), timeout)?)
    }

    /// Ends the job in the background, whether it runs or has failed. What it has not mapped is no longer wanted; with
    /// `unmap`, what it has mapped is unmapped, too. After a job that has mapped everything this does nothing.
    ///
    /// # Errors
    /// - `EBUSY`: a transaction is open
    /// - that of an unmap call
    pub fn cancel(&self, unmap: bool) -> Result<()> {
        Ok(self.inner.cancel(unmap)?)
    }

    /// How far the job in the background is. Never waits.
    pub fn progress(&self) -> Progress {
        self.inner.progress().into()
    }

    /// A descriptor that is readable from the end of a job in the background until it is read, or the next job begins.
    ///
    /// # Errors
    /// - `EMFILE`: it cannot be created
    pub fn completion_fd(&self) -> Result<BorrowedFd<'_>> {
        Ok(self.inner.completion_fd()?)
    }

    /// Starts or stops tracking the pages that devices write to; no effect if that is so already.
    ///
    /// # Errors
    /// - `EOPNOTSUPP`: the container does not track them
    /// - that of the kernel
    pub fn track_dirty(&self, on: bool) -> Result<()> {
        Ok(self.inner.track_dirty(on)?)
    }

    /// Sets the bits of the pages in `length` bytes from `iova` on that devices have written to since the last report.
    /// There is one bit for each page of [`Engine::page_size`], the first one in bit 0 of `bitmap[0]`. Other bits are
    /// unchanged.
    ///
    /// # Errors
    /// - `EINVAL`: an address is not a multiple of the page size; the range is empty or ends past 2^64; the bitmap is
    ///   too short; dirty pages are not tracked
    /// - `EOPNOTSUPP`: the container does not track them
    /// - that of the kernel
    pub fn read_dirty(&self, iova: u64, length: u64, bitmap: &mut [u64]) -> Result<()> {
        Ok(self.inner.read_dirty(range(iova, length)?, bitmap)?)
    }

    /// Like [`Engine::unmap`], and sets bits for what it unmaps as [`Engine::read_dirty`] does, also if it fails.
    ///
    /// # Errors
    /// Those of both, and `EBUSY` if a transaction is open.
    pub fn unmap_dirty(&self, iova: u64, length: u64, bitmap: &mut [u64]) -> Result<u64> {
        Ok(self.inner.unmap_dirty(range(iova, length)?, bitmap)?)
    }

    /// The smallest IOMMU page in bytes: every address and length is a multiple of it. Never waits.
    pub fn page_size(&self) -> u64 {
        self.inner.page()
    }

    /// The settings, limits and current state. Reads the kernel's limits.
    pub fn info(&self) -> Info {
        self.inner.info().into()
    }

    /// Totals since the engine was opened. Never waits.
    pub fn stats(&self) -> Stats {
        self.inner.stats()
    }

    /// The mappings that the kernel holds, as device addresses, ascending.
    pub fn mapped(&self) -> Vec<RangeInclusive<u64>> {
        self.inner.entries().iter().map(|entry| inclusive(entry.range)).collect()
    }

    /// Unmaps everything. An open transaction is abandoned, and a job in the background ended.
    ///
    /// Close it before the last group leaves a type1 container, or after: the kernel unmaps everything when that
    /// happens, and this succeeds.
    ///
    /// # Errors
    /// That of the first unmap call that failed; [`Error::leftover`](crate::Error::leftover) names what is still mapped.
    /// Devices may access that until the container is closed.
    pub fn close(self) -> Result<()> {
        Ok(self.inner.close()?)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A second panic would abort the process.
        if std::thread::panicking() {
            return;
        }
        // After close() this does nothing. A job would keep the inner engine open.
        if let (Err(error), Log(Some(log))) = (self.inner.close(), &self.log) {
            log(Level::Error, &error.to_string());
        }
    }
}
