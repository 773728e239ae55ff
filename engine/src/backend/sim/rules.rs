//! The kernel's rules according to its sources (6.12 and 7.2): the result and the effect of each call, with the
//! checks in the kernel's order.

use std::collections::{BTreeMap, BTreeSet};

use super::{Rules, SimConfig};
use crate::addr::{HostVa, Iova, IovaRange};
use crate::error::{Errno, KernelResult};
use crate::region::{Mapping, Perm};

/// The CPU's page, the unit of pinning and accounting.
const PAGE: u64 = 4096;

/// The arguments of a map call. Unlike a [`Mapping`], they can be invalid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) iova: u64,
    pub(super) length: u64,
    pub(super) hva: HostVa,
    pub(super) perm: Perm,
}

impl From<&Mapping> for Request {
    fn from(mapping: &Mapping) -> Self {
        let Mapping { range, hva, perm } = *mapping;
        Self { iova: range.start(), length: range.length(), hva, perm }
    }
}

/// The state of the container.
#[derive(Debug, Default)]
pub(super) struct KernelState {
    /// The mappings by IOVA.
    pub(super) mappings: BTreeMap<u64, Mapping>,
    /// The IOVAs of mappings of type1 that have no host address.
    pub(super) without_address: BTreeSet<u64>,
    /// Bytes that count against RLIMIT_MEMLOCK.
    pub(super) locked: u64,
    /// Whether the last group has left a container of type1, which then has no IOMMU.
    pub(super) without_iommu: bool,
    pub(super) tracking: bool,
    /// The numbers of the pages that devices wrote to since the last report.
    pub(super) written: BTreeSet<u64>,
}

impl KernelState {
    pub(super) fn map(&mut self, config: &SimConfig, request: Request) -> KernelResult<()> {
        let mapping = match config.rules {
            Rules::Type1 => self.type1_may_map(config, request)?,
            Rules::Iommufd => self.iommufd_may_map(config, request)?,
        };
        self.hold(config, mapping)
    }

    // iommufd_ioas_map_file, memfd_pin_folios. `hva` of the request is the offset in the file: an IOAS has the same
    // requirements for both.
    pub(super) fn map_file(
        &mut self,
        config: &SimConfig,
        request: Request,
        file_bytes: u64,
    ) -> KernelResult<()> {
        let mapping = self.iommufd_may_map(config, request)?;
        if config.attached && request.hva.raw() + request.length > file_bytes {
            return Err(Errno::EINVAL);
        }
        self.hold(config, mapping)
    }

    /// Pins and counts the memory of a valid mapping. Without a device the mapping is only recorded.
    fn hold(&mut self, config: &SimConfig, mapping: Mapping) -> KernelResult<()> {
        if config.attached {
            pin(config, self.locked, &mapping)?;
            self.locked += mapping.range.length();
        }
        self.mappings.insert(mapping.range.start(), mapping);
        Ok(())
    }

    pub(super) fn unmap(&mut self, config: &SimConfig, iova: u64, length: u64) -> KernelResult<u64> {
        match config.rules {
            Rules::Type1 => self.type1_unmap(config, iova, length),
            Rules::Iommufd => self.iommufd_unmap(config, iova, length),
        }
    }

    /// VFIO_DMA_UNMAP_FLAG_ALL, or with iommufd the maximum length.
    pub(super) fn unmap_all(&mut self, config: &SimConfig) -> KernelResult<u64> {
        match config.rules {
            Rules::Type1 => {
                Ok(self.overlapping(IovaRange::ALL).map(|range| self.remove(config, range)).sum())
            }
            Rules::Iommufd => self.iommufd_unmap_range(config, IovaRange::ALL),
        }
    }

    /// Attaches the first device of an IOAS: pins everything that was only recorded, or nothing.
    pub(super) fn attach(&mut self, config: &SimConfig) -> KernelResult<()> {
        let mut locked = self.locked;
        for mapping in self.mappings.values() {
            let (range, hva) = (mapping.range, mapping.hva.raw());
            let page = config.page_sizes.smallest();
            let aligned = (range.start() | range.length() | hva) & (page - 1) == 0;
            if !aligned || !valid(config, range) {
                return Err(Errno::EADDRINUSE);
            }
        }
        for mapping in self.mappings.values() {
            pin(config, locked, mapping)?;
            locked += mapping.range.length();
        }
        self.locked = locked;
        Ok(())
    }

    /// The last group or device leaves. An IOAS keeps its mappings, but no longer pins them.
    // __vfio_group_unset_container, vfio_iommu_type1_detach_group; iopt_table_remove_domain.
    pub(super) fn detach(&mut self, config: &SimConfig) {
        self.locked = 0;
        if config.rules == Rules::Type1 {
            self.mappings.clear();
            self.without_address.clear();
            self.written.clear();
            self.without_iommu = true;
        }
    }

    /// Removes one mapping; returns its length.
    pub(super) fn remove(&mut self, config: &SimConfig, range: IovaRange) -> u64 {
        self.mappings.remove(&range.start());
        self.without_address.remove(&range.start());
        let page = config.page_sizes.smallest();
        // The dirty bits are dropped with the entry.
        self.written.retain(|number| !(range.start()..=range.last()).contains(&(number * page)));
        if config.attached {
            self.locked -= range.length();
        }
        range.length()
    }

    /// The mappings that share a byte with `range`, ascending.
    fn overlapping(&self, range: IovaRange) -> std::vec::IntoIter<IovaRange> {
        let below =
            self.mappings.range(..=range.start()).next_back().filter(|(_, m)| m.range.overlaps(range));
        let first = below.map_or(range.start(), |(start, _)| *start);
        let found = self.mappings.range(first..=range.last()).map(|(_, mapping)| mapping.range);
        found.collect::<Vec<_>>().into_iter()
    }

    // vfio_dma_do_map. If the range wraps, 7.2 returns EOVERFLOW and 6.12 EINVAL.
    fn type1_may_map(&self, config: &SimConfig, request: Request) -> KernelResult<Mapping> {
        let Request { iova, length, hva, perm } = request;
        let page = config.page_sizes.smallest();
        if length == 0 || (length | iova | hva.raw()) & (page - 1) != 0 {
            return Err(Errno::EINVAL);
        }
        let range = IovaRange::new(Iova(iova), length).ok_or(Errno::EINVAL)?;
        hva.checked_add(length - 1).ok_or(Errno::EINVAL)?;
        if self.overlapping(range).len() > 0 {
            return Err(Errno::EEXIST);
        }
        if self.mappings.len() as u64 >= config.dma_avail {
            return Err(Errno::ENOSPC);
        }
        if !valid(config, range) {
            return Err(Errno::EINVAL);
        }
        Ok(Mapping { range, hva, perm })
    }

    // iommufd_ioas_map, iopt_alloc_user_pages, iopt_alloc_area_pages.
    fn iommufd_may_map(&self, config: &SimConfig, request: Request) -> KernelResult<Mapping> {
        let Request { iova, length, hva, perm } = request;
        if iova == u64::MAX || length == u64::MAX || hva.checked_add(length).is_none() {
            return Err(Errno::EOVERFLOW);
        }
        let alignment = alignment(config);
        if length == 0 || length > u64::MAX - PAGE || (length | iova) & (alignment - 1) != 0 {
            return Err(Errno::EINVAL);
        }
        let range = IovaRange::new(Iova(iova), length).ok_or(Errno::EOVERFLOW)?;
        if config.attached && !valid(config, range) {
            return Err(Errno::EINVAL);
        }
        if self.overlapping(range).len() > 0 {
            return Err(Errno::EEXIST);
        }
        if hva.raw() & (alignment - 1) != 0 {
            return Err(Errno::EINVAL);
        }
        Ok(Mapping { range, hva, perm })
    }

    // vfio_dma_do_unmap with v2.
    fn type1_unmap(&mut self, config: &SimConfig, iova: u64, length: u64) -> KernelResult<u64> {
        let page = config.page_sizes.smallest();
        if length == 0 || (iova | length) & (page - 1) != 0 {
            return Err(Errno::EINVAL);
        }
        let range = IovaRange::new(Iova(iova), length).ok_or(Errno::EINVAL)?;
        Ok(self.whole(range)?.map(|mapping| self.remove(config, mapping)).sum())
    }

    /// The mappings in `range`; an error if the range cuts one, which type1 does not allow.
    pub(super) fn whole(&self, range: IovaRange) -> KernelResult<std::vec::IntoIter<IovaRange>> {
        let inside = self.overlapping(range);
        let cut = inside.as_slice().iter().any(|mapping| !range.contains(*mapping));
        if cut { Err(Errno::EINVAL) } else { Ok(inside) }
    }

    // vfio_dma_do_unmap with VFIO_DMA_UNMAP_FLAG_VADDR: all mappings in the range, or none.
    pub(super) fn drop_addresses(&mut self, range: Option<IovaRange>) -> KernelResult<()> {
        let inside: Vec<u64> = match range {
            Some(range) => self.whole(range)?.map(IovaRange::start).collect(),
            None => self.mappings.keys().copied().collect(),
        };
        if inside.iter().any(|start| self.without_address.contains(start)) {
            return Err(Errno::EINVAL);
        }
        self.without_address.extend(inside);
        Ok(())
    }

    // vfio_dma_do_map with VFIO_DMA_MAP_FLAG_VADDR.
    pub(super) fn set_address(&mut self, mapping: &Mapping) -> KernelResult<()> {
        let found = self.overlapping(mapping.range).next().ok_or(Errno::ENOENT)?;
        if found != mapping.range || !self.without_address.remove(&found.start()) {
            return Err(Errno::EINVAL);
        }
        if let Some(held) = self.mappings.get_mut(&found.start()) {
            held.hva = mapping.hva;
        }
        Ok(())
    }

    // iommufd_ioas_unmap, iopt_unmap_iova.
    fn iommufd_unmap(&mut self, config: &SimConfig, iova: u64, length: u64) -> KernelResult<u64> {
        if (iova, length) == (0, u64::MAX) {
            return self.iommufd_unmap_range(config, IovaRange::ALL);
        }
        if iova == u64::MAX || length == u64::MAX {
            return Err(Errno::EOVERFLOW);
        }
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        let range = IovaRange::new(Iova(iova), length).ok_or(Errno::EOVERFLOW)?;
        match self.iommufd_unmap_range(config, range)? {
            0 => Err(Errno::ENOENT),
            bytes => Ok(bytes),
        }
    }

    // iopt_unmap_iova_range: from the lowest mapping up. An error does not restore the mappings already removed.
    fn iommufd_unmap_range(&mut self, config: &SimConfig, range: IovaRange) -> KernelResult<u64> {
        let mut bytes = 0;
        for mapping in self.overlapping(range) {
            if config.busy.contains(&mapping.start()) {
                return Err(Errno::EBUSY);
            }
            if !range.contains(mapping) {
                return Err(Errno::ENOENT);
            }
            bytes += self.remove(config, mapping);
        }
        Ok(bytes)
    }
}

/// The required alignment. An IOAS without a device has no restrictions.
pub(super) fn alignment(config: &SimConfig) -> u64 {
    if config.attached { config.page_sizes.smallest() } else { 1 }
}

fn valid(config: &SimConfig, range: IovaRange) -> bool {
    config.iova_ranges.is_empty() || config.iova_ranges.iter().any(|valid| valid.contains(range))
}

/// Returns the error of pinning this memory, if any, when `locked` bytes are counted already.
fn pin(config: &SimConfig, locked: u64, mapping: &Mapping) -> KernelResult<()> {
    let (start, length) = (mapping.hva.raw(), mapping.range.length());
    let last = start + (length - 1);
    let among = |places: &[(u64, u64)]| places.iter().any(|(first, end)| *first <= last && start <= *end);
    if among(&config.unmappable) || (mapping.perm.is_writable() && among(&config.read_only)) {
        return Err(Errno::EFAULT);
    }
    let others = if config.rules == Rules::Iommufd { config.charges.others } else { 0 };
    match config.memlock_limit {
        Some(limit) if (locked + others + length) / PAGE > limit / PAGE => Err(Errno::ENOMEM),
        _ => Ok(()),
    }
}
