//! A model of the kernel's drivers, for tests of programs that use this crate: no device, IOMMU or privilege is needed.
//!
//! The model follows the rules of type1 and iommufd: what may overlap, which errno each refusal has, how many bytes an
//! unmap returns. The library's own tests compare it with both drivers, on real kernels. It accesses no memory: any host
//! address will do.
//!
//! ```
//! use vfio_fast_dma::{Config, Engine, Region, sim};
//!
//! # fn main() -> Result<(), vfio_fast_dma::Error> {
//! const ENOMEM: i32 = 12;
//! let container = sim::Container::new(sim::Driver::Iommufd).fail_call(2, ENOMEM);
//! let engine = Engine::sim(&container, Config::new())?;
//! let memory = std::ptr::without_provenance_mut(0x7f00_0000_0000);
//! // SAFETY: the model accesses no memory.
//! unsafe { engine.map(&Region::new(0, memory, 1 << 20))? };
//! // SAFETY: the same.
//! let error = unsafe { engine.map(&Region::new(1 << 20, memory, 1 << 20)) }.unwrap_err();
//! assert_eq!(error.errno(), ENOMEM);
//! assert_eq!(container.mappings().len(), 1);
//! # Ok(())
//! # }
//! ```

use std::ops::RangeInclusive;

use vfio_fast_engine::Errno;
use vfio_fast_engine::addr::IovaRange;
use vfio_fast_engine::backend::sim::{Call, Rules, Sim, SimConfig};
use vfio_fast_engine::region::Perm;

use crate::range::inclusive;

/// The driver whose rules the model follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Driver {
    /// A VFIO container with type1.
    Type1,
    /// An IOAS of iommufd.
    Iommufd,
}

/// A mapping that the model holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mapping {
    /// The device addresses.
    pub iova: RangeInclusive<u64>,
    /// The host address of the first byte.
    pub host: u64,
    /// Whether the device may write.
    pub writable: bool,
}

/// A container of the model, with a device attached. [`Engine::sim`](crate::Engine::sim) opens engines on it; it stays
/// here for tests to look at.
#[derive(Debug)]
pub struct Container {
    pub(crate) model: Sim,
}

impl Container {
    /// An empty container.
    pub fn new(driver: Driver) -> Self {
        let rules = match driver {
            Driver::Type1 => Rules::Type1,
            Driver::Iommufd => Rules::Iommufd,
        };
        Self { model: Sim::new(SimConfig { rules, ..SimConfig::default() }) }
    }

    /// Lets the map or unmap call with this number, counted from 1, fail with `errno`.
    #[must_use]
    pub fn fail_call(self, number: u64, errno: i32) -> Self {
        self.model.reconfigure(|config| config.failures.push((number, Errno(errno))));
        self
    }

    /// Lets the container hold that many mappings (type1's `dma_entry_limit`); iommufd has no limit.
    #[must_use]
    pub fn entry_limit(self, entries: u64) -> Self {
        self.model.reconfigure(|config| config.dma_avail = entries);
        self
    }

    /// Lets the kernel pin that many bytes (`RLIMIT_MEMLOCK`).
    #[must_use]
    pub fn memlock_limit(self, bytes: u64) -> Self {
        self.model.reconfigure(|config| config.memlock_limit = Some(bytes));
        self
    }

    /// Lets the IOMMU translate only these device addresses, in ascending order. Empty ranges are left out.
    #[must_use]
    pub fn iova_ranges(self, ranges: impl IntoIterator<Item = RangeInclusive<u64>>) -> Self {
        let ranges =
            ranges.into_iter().filter_map(|range| IovaRange::from_bounds(*range.start(), *range.end()));
        self.model.reconfigure(|config| config.iova_ranges = ranges.collect());
        self
    }

    /// Counts only pages as written to that [`Container::write`] names. Otherwise every mapped page is, as the kernel
    /// has it for devices that do not report their writes.
    #[must_use]
    pub fn precise_dirty_pages(self) -> Self {
        self.model.reconfigure(|config| config.all_dirty = false);
        self
    }

    /// The mappings, ascending.
    pub fn mappings(&self) -> Vec<Mapping> {
        let mappings = self.model.mappings().into_iter();
        let mapping = |mapping: vfio_fast_engine::region::Mapping| Mapping {
            iova: inclusive(mapping.range),
            host: mapping.hva.raw(),
            writable: mapping.perm == Perm::ReadWrite,
        };
        mappings.map(mapping).collect()
    }

    /// The number of map calls so far, including those that failed.
    pub fn map_calls(&self) -> usize {
        self.model.calls().iter().filter(|call| matches!(call, Call::Map(_) | Call::MapFile(..))).count()
    }

    /// The number of calls so far that unmap, including those that failed.
    pub fn unmap_calls(&self) -> usize {
        self.model.calls().iter().filter(|call| matches!(call, Call::Unmap(_) | Call::UnmapAll)).count()
    }

    /// Lets a device write to the page at `iova`.
    pub fn write(&self, iova: u64) {
        self.model.write(iova);
    }

    /// Bytes that are pinned and counted as locked memory.
    pub fn locked_bytes(&self) -> u64 {
        self.model.locked()
    }
}
