//! The kernel's iommufd: an IOAS that devices are attached to.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::addr::{IovaRange, PageSizes};
use crate::backend::{Backend, Capabilities, Handover, Mapping, PopulatePolicy, enoent_as_zero};
use crate::error::{Errno, Error, ErrorKind, KernelResult, Op, Result};
use crate::limits::{Limits, Memlock, MemlockScope, UserCharges};
use crate::object::{Object, ObjectKind};
use crate::sys::fd::{self, Descriptor};
use crate::sys::{dma_buf, iommufd, memlock, procmap};

/// An IOAS, through a descriptor of its own.
///
/// The duplicate keeps the iommufd, and with it every mapping, alive until this is dropped.
///
/// Without an attached device a map call only records the mapping: nothing is checked, pinned or counted until the
/// first device is attached, and then all of it on one thread. So attach the device first.
#[derive(Debug)]
pub struct Iommufd {
    fd: OwnedFd,
    ioas_id: u32,
    scope: MemlockScope,
    /// Bytes mapped by this backend. The kernel counts per user, so this is only a part of what it counts.
    mapped: AtomicU64,
    /// The lengths of mapped BARs, by IOVA. They are not counted as locked memory.
    bars: Mutex<BTreeMap<u64, u64>>,
    /// Set once the kernel has refused to map by file.
    no_files: AtomicBool,
}

impl Iommufd {
    /// Duplicates `iommufd`, which has the IOAS `ioas_id`.
    pub fn open<'a>(iommufd: impl Into<Descriptor<'a>>, ioas_id: u32) -> Result<Self> {
        let fd = fd::duplicate(iommufd.into()).map_err(|errno| Error::kernel(Op::Open, errno))?;
        iommufd::space(fd.as_fd(), ioas_id).map_err(|error| match error.errno {
            Errno::ENOENT => Error::check(
                Errno::ENOENT,
                ErrorKind::Other("the iommufd has no IOAS with this id: pass what IOMMU_IOAS_ALLOC returned"),
            )
            .of(Op::Open),
            _ => error.of(Op::Open),
        })?;
        // Fixed since the IOAS was created. If the kernel does not report it, assume its default.
        let per_process = iommufd::counts_per_process(fd.as_fd()).unwrap_or(false);
        let scope = if per_process { MemlockScope::Process } else { MemlockScope::User };
        let (mapped, bars, no_files) = Default::default();
        Ok(Self { fd, ioas_id, scope, mapped, bars, no_files })
    }

    /// Maps memory by host address, which works with every kernel.
    fn map_address(&self, mapping: &Mapping) -> KernelResult<()> {
        iommufd::map(self.fd.as_fd(), self.ioas_id, mapping)
    }

    /// Maps by file: without page tables or the lock of the address space, one huge page at a time. For a private
    /// mapping this would map the wrong pages, so the caller's statement is checked.
    fn map_file(&self, mapping: &Mapping, file: Object<'_>) -> KernelResult<()> {
        let Object { fd, offset, .. } = file;
        let Mapping { range, hva, perm } = *mapping;
        let known = !self.no_files.load(Ordering::Relaxed);
        if !known || !procmap::is_shared_memory(hva, range.length(), perm.is_writable(), fd, offset) {
            return self.map_address(mapping);
        }
        match iommufd::map_file(self.fd.as_fd(), self.ioas_id, mapping, fd, offset) {
            Err(errno) if refuses_the_file(errno) => {
                // Only this errno says that the kernel maps no file at all.
                self.no_files.fetch_or(errno == Errno::ENOTTY, Ordering::Relaxed);
                self.map_address(mapping)
            }
            answer => answer,
        }
    }

    /// Maps through a dma-buf, which is closed once the call has returned: the mapping holds a reference.
    fn map_bar(&self, mapping: &Mapping, bar: Object<'_>, region_index: u32) -> KernelResult<()> {
        let range = mapping.range;
        let buffer = dma_buf::export(bar.fd, region_index, bar.offset, range.length())?;
        iommufd::map_file(self.fd.as_fd(), self.ioas_id, mapping, buffer.as_fd(), 0)?;
        self.bars().insert(range.start(), range.length());
        Ok(())
    }

    /// Drops the record of BARs in `range`; returns how many bytes of them were mapped.
    fn forget_bars(&self, range: IovaRange) -> u64 {
        let mut bars = self.bars();
        let gone: Vec<u64> = bars.range(range.start()..=range.last()).map(|(iova, _)| *iova).collect();
        gone.into_iter().filter_map(|iova| bars.remove(&iova)).sum()
    }

    fn bars(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, u64>> {
        self.bars.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a kernel that does not map a file for this reason may map the same memory by address. If it does not, its
/// errno is the one that a map of memory without a file returns. EINVAL: memfd_pin_folios() does not know the file, or
/// the file ends before the mapping does. Other errnos (the range is in use, too much is locked) do not depend on how
/// memory is mapped.
fn refuses_the_file(errno: Errno) -> bool {
    matches!(errno, Errno::ENOTTY | Errno::EINVAL | Errno::EOPNOTSUPP)
}

impl Backend for Iommufd {
    fn name(&self) -> &'static str {
        "iommufd"
    }

    fn limits(&self) -> Result<Limits> {
        let space = iommufd::space(self.fd.as_fd(), self.ioas_id)?;
        // The kernel reports no page sizes, only the alignment.
        Ok(Limits {
            page_sizes: PageSizes::from_bitmap(space.alignment),
            iova_ranges: space.ranges,
            entries: None,
            entries_at_open: None,
        })
    }

    fn memlock(&self) -> Memlock {
        let of_process = memlock::memlock();
        match self.scope {
            MemlockScope::Process => of_process,
            MemlockScope::User => Memlock {
                locked: self.mapped.load(Ordering::Relaxed),
                limit: of_process.limit,
                scope: MemlockScope::User,
            },
        }
    }

    fn user_charges(&self) -> UserCharges {
        memlock::user_charges()
    }

    fn capabilities(&self) -> Capabilities {
        // One map call clears pages on one thread only and does not request huge pages. Faulting in does both better.
        Capabilities { populate: PopulatePolicy::Overlapped, parallel: true, objects: true, exclusive: false }
    }

    fn handover(&self) -> Option<&dyn Handover> {
        Some(self)
    }

    fn map(&self, mapping: &Mapping, object: Option<Object<'_>>) -> KernelResult<()> {
        match object {
            Some(bar @ Object { kind: ObjectKind::Bar { region_index }, .. }) => {
                return self.map_bar(mapping, bar, region_index);
            }
            Some(file) => self.map_file(mapping, file),
            None => self.map_address(mapping),
        }?;
        self.mapped.fetch_add(mapping.range.length(), Ordering::Relaxed);
        Ok(())
    }

    // EBUSY is returned as it is. It means that another thread maps or unmaps in this range, or that an entry in it
    // is in use. The engine can wait for neither, and the entries before the busy one may already be unmapped, so a
    // later byte count would not match.
    fn unmap(&self, range: IovaRange) -> KernelResult<u64> {
        let bytes = enoent_as_zero(iommufd::unmap(self.fd.as_fd(), self.ioas_id, range))?;
        let counted = bytes.saturating_sub(self.forget_bars(range));
        // Another user may map in the same IOAS, and its mappings are not counted here.
        let less = |mapped: u64| Some(mapped.saturating_sub(counted));
        let _ = self.mapped.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        Ok(bytes)
    }

    fn unmap_all(&self) -> KernelResult<u64> {
        self.unmap(IovaRange::ALL)
    }
}

// Entries of files have no host address. IOMMU_IOAS_CHANGE_PROCESS moves all entries of the iommufd to another process at
// once, and refuses to if one of them is not of a file. The owner of the iommufd calls it, because there is one for
// all its IOASes.
impl Handover for Iommufd {
    fn drop_addresses(&self, _: Option<IovaRange>) -> KernelResult<()> {
        Ok(())
    }

    fn set_address(&self, mapping: &Mapping) -> KernelResult<()> {
        self.mapped.fetch_add(mapping.range.length(), Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_does_not_depend_on_the_file_is_not_tried_by_address() {
        assert!([Errno::ENOTTY, Errno::EINVAL, Errno::EOPNOTSUPP].into_iter().all(refuses_the_file));
        assert!(![Errno::EEXIST, Errno::ENOMEM, Errno::EFAULT].into_iter().any(refuses_the_file));
    }

    #[test]
    fn what_is_no_iommufd_cannot_be_opened() {
        let file = File::open("/dev/null").unwrap();
        let error = Iommufd::open(file.as_fd(), 1).unwrap_err();
        assert_eq!((error.op, error.errno), (Op::Open, Errno(libc::ENOTTY)));
    }
}
