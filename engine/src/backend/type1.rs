//! The kernel's type1 driver, through a VFIO container.

use std::os::fd::{AsFd, OwnedFd};

use crate::addr::{Iova, IovaRange, PageSizes};
use crate::backend::{
    Backend, Capabilities, DirtyTracking, Handover, Mapping, PopulatePolicy, enoent_as_zero, unmap_halves,
};
use crate::error::{Errno, Error, ErrorKind, KernelResult, Op, Result};
use crate::limits::{Limits, Memlock};
use crate::object::Object;
use crate::sys::fd::{self, Descriptor};
use crate::sys::memlock;
use crate::sys::type1::info::{self, Type1Info};
use crate::sys::type1::{self, Extent, dirty};

/// The only result of VFIO_GET_API_VERSION so far.
const API_VERSION: i32 = 0;

/// A container with VFIO_TYPE1v2_IOMMU set, through a descriptor of its own.
///
/// The duplicate keeps the container, and with it every mapping, alive until this is dropped. Drop this first to make
/// the kernel release the mappings when the container is closed.
#[derive(Debug)]
pub struct Type1 {
    container: OwnedFd,
    /// The smallest IOMMU page in bytes.
    page: u64,
    /// Whether iommufd's compatibility layer (the kernel's vfio_compat.c) serves the container, with iommufd's
    /// locking and errors.
    vfio_compat: bool,
    /// The number of entries that fitted at first; `None`: no limit.
    entries_at_open: Option<u64>,
    /// Maximum number of bytes for which one call reports dirty pages; `None`: no dirty tracking.
    max_dirty_bytes: Option<u64>,
}

impl Type1 {
    /// Duplicates `container`. Its owner has set the IOMMU type, which the kernel does not report.
    pub fn open<'a>(container: impl Into<Descriptor<'a>>) -> Result<Self> {
        let failed = |errno| Error::kernel(Op::Open, errno);
        let refused = |text| Error::check(Errno::EINVAL, ErrorKind::Other(text)).of(Op::Open);
        let container = fd::duplicate(container.into()).map_err(failed)?;
        let version = type1::api_version(container.as_fd()).map_err(failed)?;
        if version != API_VERSION {
            return Err(refused("the container speaks an unknown version of VFIO"));
        }
        let info = read_info(&container).map_err(|error| match error.errno {
            // Every request to a container without an IOMMU type fails with EINVAL.
            Errno::EINVAL => refused(
                "the container has no IOMMU: add a group (VFIO_GROUP_SET_CONTAINER) and choose VFIO_TYPE1v2_IOMMU \
                 (VFIO_SET_IOMMU) before it is opened here",
            ),
            _ => error,
        })?;
        let page = PageSizes::from_bitmap(info.page_sizes).smallest();
        let max_dirty_bytes =
            info.migration.filter(|tracked| tracked.page_sizes & page != 0).map(|tracked| {
                // A bit for each page.
                tracked.max_bitmap_bytes.saturating_mul(8).saturating_mul(page)
            });
        let (vfio_compat, entries_at_open) = (is_vfio_compat(&info), entries(&info));
        Ok(Self { container, page, vfio_compat, entries_at_open, max_dirty_bytes })
    }

    /// The IOVAs that may be mapped, of those that the kernel reports.
    ///
    /// Linux 6.12 maps the last page of the 64-bit space and does not unmap it, not even with everything else: the call
    /// succeeds and reports 0 bytes. 7.2 unmaps it, and so does iommufd. Of the IOMMUs that the tests have, AMD-Vi
    /// translates that address.
    fn ranges(&self, reported: Vec<IovaRange>) -> Vec<IovaRange> {
        if self.vfio_compat { reported } else { without_the_last_page(reported, self.page) }
    }
}

/// Reads the description of the container.
fn read_info(container: &OwnedFd) -> Result<Type1Info> {
    let bytes = type1::info(container.as_fd())?;
    info::parse(&bytes).map_err(|malformed| Error::malformed(malformed.text()))
}

/// Whether iommufd serves this container (an opened `/dev/iommu`, or `/dev/vfio/vfio` of a kernel configured for
/// that).
///
/// It has no limit on entries, and reports the largest number possible. An administrator can set type1's limit to
/// that number too, but type1 always has dirty tracking, and iommufd never has it here.
fn is_vfio_compat(info: &Type1Info) -> bool {
    info.dma_avail == Some(u32::MAX) && info.migration.is_none()
}

/// The number of entries that still fit; `None` if there is no limit.
fn entries(info: &Type1Info) -> Option<u64> {
    info.dma_avail.filter(|_| !is_vfio_compat(info)).map(u64::from)
}

impl Backend for Type1 {
    fn name(&self) -> &'static str {
        "type1"
    }

    fn limits(&self) -> Result<Limits> {
        let info = read_info(&self.container)?;
        Ok(Limits {
            page_sizes: PageSizes::from_bitmap(info.page_sizes),
            entries: entries(&info),
            entries_at_open: self.entries_at_open,
            iova_ranges: self.ranges(info.iova_ranges),
        })
    }

    fn memlock(&self) -> Memlock {
        memlock::memlock()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            // The driver pins under one lock, on one thread at a time, and four fifths of that time are spent on
            // clearing pages. To count the pinned pages it takes the lock of the address space for writing, which
            // delays page faults. So fault in first, not concurrently.
            populate: PopulatePolicy::Upfront,
            // The driver holds its only lock from the first pinned page to the last.
            parallel: self.vfio_compat,
            objects: false,
            // iommufd's compatibility layer uses an IOAS, which can have other users.
            exclusive: !self.vfio_compat,
        }
    }

    fn dirty_tracking(&self) -> Option<&dyn DirtyTracking> {
        self.max_dirty_bytes.map(|_| self as &dyn DirtyTracking)
    }

    fn handover(&self) -> Option<&dyn Handover> {
        // iommufd's compatibility layer refuses these requests.
        let supported = !self.vfio_compat && type1::updates_vaddr(self.container.as_fd());
        supported.then_some(self)
    }

    fn map(&self, mapping: &Mapping, _: Option<Object<'_>>) -> KernelResult<()> {
        if !self.vfio_compat && mapping.range.last() == u64::MAX {
            return Err(Errno::EINVAL);
        }
        let Mapping { range, hva, perm } = *mapping;
        let (start, length) = (Iova(range.start()), range.length());
        type1::map(self.container.as_fd(), start, hva, length, perm.is_writable())
    }

    fn unmap(&self, range: IovaRange) -> KernelResult<u64> {
        let container = self.container.as_fd();
        let start = Iova(range.start());
        let answer = unmap_to_the_top(range, self.page, |length| {
            type1::unmap(container, Extent::Bytes(start, length))
        });
        if self.vfio_compat { enoent_as_zero(answer) } else { answer }
    }

    fn unmap_all(&self) -> KernelResult<u64> {
        match type1::unmap(self.container.as_fd(), Extent::All) {
            Err(Errno::ENOENT) if self.vfio_compat => Ok(0),
            Err(_) => unmap_halves(|range| self.unmap(range)),
            answer => answer,
        }
    }

    // When the last group leaves a container, the kernel unmaps everything and takes the IOMMU away. Every request then
    // fails with EINVAL. An IOAS of iommufd keeps its mappings without a device.
    fn is_emptied(&self) -> bool {
        !self.vfio_compat && read_info(&self.container).is_err_and(|error| error.errno == Errno::EINVAL)
    }
}

impl Handover for Type1 {
    fn drop_addresses(&self, range: Option<IovaRange>) -> KernelResult<()> {
        let extent = range.map_or(Extent::All, |range| Extent::Bytes(Iova(range.start()), range.length()));
        type1::invalidate_vaddr(self.container.as_fd(), extent)
    }

    fn set_address(&self, mapping: &Mapping) -> KernelResult<()> {
        let Mapping { range, hva, perm: _ } = *mapping;
        type1::set_vaddr(self.container.as_fd(), Iova(range.start()), hva, range.length())
    }
}

impl DirtyTracking for Type1 {
    fn max_bytes(&self) -> u64 {
        self.max_dirty_bytes.unwrap_or(0)
    }

    fn track_dirty(&self, on: bool) -> KernelResult<()> {
        dirty::track(self.container.as_fd(), on)
    }

    fn read_dirty(&self, range: IovaRange, bitmap: &mut [u64]) -> KernelResult<()> {
        dirty::read(self.container.as_fd(), range, self.page, bitmap)
    }

    fn unmap_dirty(&self, range: IovaRange, bitmap: &mut [u64]) -> KernelResult<u64> {
        dirty::unmap(self.container.as_fd(), range, self.page, bitmap)
    }
}

/// The ranges without the last page of the 64-bit space.
fn without_the_last_page(ranges: Vec<IovaRange>, page: u64) -> Vec<IovaRange> {
    let last = IovaRange::from_bounds(u64::MAX - (page - 1), u64::MAX);
    let cut = |range: IovaRange| match last {
        Some(last) if range.overlaps(last) => range.without(last).0,
        _ => Some(range),
    };
    ranges.into_iter().filter_map(cut).collect()
}

/// Unmaps `range`, which may reach the end of the 64-bit space.
///
/// Kernels before 5.0 refuse an unmap of exactly the last page with EINVAL (their overflow check is off by one). The
/// page is then left out, as in QEMU. Those kernels cannot have mapped it either, so nothing stays mapped; if
/// something did, the byte count would differ.
fn unmap_to_the_top(
    range: IovaRange,
    page: u64,
    mut unmap: impl FnMut(u64) -> KernelResult<u64>,
) -> KernelResult<u64> {
    match unmap(range.length()) {
        Err(Errno::EINVAL) if range.last() == u64::MAX && range.length() > page => {
            unmap(range.length() - page)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    /// Returns `answers` one after the other, and a counter of the calls.
    fn answering<T: Copy>(answers: &[T]) -> (Cell<usize>, impl Fn(&Cell<usize>) -> T + '_) {
        (Cell::new(0), |asked| {
            let answer = answers[asked.get()];
            asked.set(asked.get() + 1);
            answer
        })
    }

    fn asked_to_unmap(range: IovaRange, answers: &[KernelResult<u64>]) -> (Vec<u64>, KernelResult<u64>) {
        let (asked, answer) = answering(answers);
        let mut lengths = Vec::new();
        let result = unmap_to_the_top(range, 0x1000, |length| {
            lengths.push(length);
            answer(&asked)
        });
        (lengths, result)
    }

    #[test]
    fn the_last_page_is_left_out_where_the_kernel_refuses_it() {
        let top = IovaRange::from_bounds(u64::MAX - 0x2fff, u64::MAX).unwrap();
        assert_eq!(asked_to_unmap(top, &[Ok(0x3000)]), (vec![0x3000], Ok(0x3000)));
        assert_eq!(
            asked_to_unmap(top, &[Err(Errno::EINVAL), Ok(0x2000)]),
            (vec![0x3000, 0x2000], Ok(0x2000)),
            "the count is the kernel's"
        );
        assert_eq!(
            asked_to_unmap(top, &[Err(Errno::EINVAL), Err(Errno::EINVAL)]),
            (vec![0x3000, 0x2000], Err(Errno::EINVAL))
        );
        assert_eq!(asked_to_unmap(top, &[Err(Errno::EIO)]), (vec![0x3000], Err(Errno::EIO)));
    }

    #[test]
    fn the_last_page_cannot_be_mapped() {
        let range = |start, last| IovaRange::from_bounds(start, last).unwrap();
        let low = range(0, 0xfedf_ffff);
        let ranges = |high| without_the_last_page(vec![low, high], 0x1000);
        assert_eq!(ranges(range(1 << 32, u64::MAX)), [low, range(1 << 32, u64::MAX - 0x1000)]);
        assert_eq!(ranges(range(u64::MAX - 0xfff, u64::MAX)), [low]);
        let below = range(1 << 32, u64::MAX - 0x1000);
        assert_eq!(ranges(below), [low, below]);
    }

    #[test]
    fn nothing_is_left_out_elsewhere() {
        let below = IovaRange::from_bounds(u64::MAX - 0x2fff, u64::MAX - 0x1000).unwrap();
        assert_eq!(asked_to_unmap(below, &[Err(Errno::EINVAL)]), (vec![0x2000], Err(Errno::EINVAL)));
        // Without this page the length would be 0, which not every kernel takes as an empty range.
        let last = IovaRange::from_bounds(u64::MAX - 0xfff, u64::MAX).unwrap();
        assert_eq!(asked_to_unmap(last, &[Err(Errno::EINVAL)]), (vec![0x1000], Err(Errno::EINVAL)));
    }

    #[test]
    fn two_marks_tell_iommufd_from_type1() {
        let migration = Some(info::Migration { page_sizes: 0x1000, max_bitmap_bytes: 1 << 28 });
        for (dma_avail, migration, vfio_compat) in [
            (Some(u32::MAX), None, true),
            (Some(u32::MAX), migration, false),
            (Some(65535), None, false),
            (Some(65535), migration, false),
            (None, None, false),
        ] {
            let info = Type1Info { dma_avail, migration, ..Type1Info::default() };
            assert_eq!(is_vfio_compat(&info), vfio_compat, "{info:?}");
        }
    }

    #[test]
    fn what_is_no_container_cannot_be_opened() {
        let file = File::open("/dev/null").unwrap();
        let error = Type1::open(file.as_fd()).unwrap_err();
        assert_eq!((error.op, error.errno), (Op::Open, Errno(libc::ENOTTY)));
    }
}
