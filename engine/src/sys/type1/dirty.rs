//! The ioctls with which a VFIO container reports the pages that devices have written to (Linux 5.8).
#![allow(unsafe_code)]

use std::mem::{offset_of, size_of};
use std::os::fd::BorrowedFd;

use vfio_bindings::bindings::vfio as uapi;
use vfio_bindings::bindings::vfio::{
    vfio_bitmap, vfio_iommu_type1_dirty_bitmap, vfio_iommu_type1_dirty_bitmap_get, vfio_iommu_type1_dma_unmap,
};

use super::{IOMMU_UNMAP_DMA, request};
use crate::addr::IovaRange;
use crate::error::KernelResult;
use crate::sys::ioctl::submit;

const IOMMU_DIRTY_PAGES: libc::c_ulong = request(17);

/// The argument after the header of a request for a bitmap.
#[repr(C)]
struct Get {
    head: vfio_iommu_type1_dirty_bitmap,
    get: vfio_iommu_type1_dirty_bitmap_get,
}

/// The argument of an unmap that returns a bitmap.
#[repr(C)]
struct Unmap {
    head: vfio_iommu_type1_dma_unmap,
    bitmap: vfio_bitmap,
}

const _: () = {
    assert!(IOMMU_DIRTY_PAGES == 0x3b75);
    assert!(size_of::<Get>() == 48 && offset_of!(Get, get) == 8);
    assert!(size_of::<Unmap>() == 48 && offset_of!(Unmap, bitmap) == 24);
};

/// Starts or stops tracking; no effect if it is already started or stopped.
pub(crate) fn track(container: BorrowedFd<'_>, on: bool) -> KernelResult<()> {
    let flags =
        if on { uapi::VFIO_IOMMU_DIRTY_PAGES_FLAG_START } else { uapi::VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP };
    let mut argument = vfio_iommu_type1_dirty_bitmap {
        argsz: size_of::<vfio_iommu_type1_dirty_bitmap>() as u32,
        flags,
        ..Default::default()
    };
    // SAFETY: `argument` is as long as its first field states and outlives the call.
    unsafe { submit(container, IOMMU_DIRTY_PAGES, (&raw mut argument).cast()) }.map(drop)
}

/// Moves the dirty bits of the whole entries in `range` to `bitmap`, one bit per page of `page` bytes.
pub(crate) fn read(
    container: BorrowedFd<'_>,
    range: IovaRange,
    page: u64,
    bitmap: &mut [u64],
) -> KernelResult<()> {
    let mut argument = Get {
        head: vfio_iommu_type1_dirty_bitmap {
            argsz: size_of::<Get>() as u32,
            flags: uapi::VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
            ..Default::default()
        },
        get: vfio_iommu_type1_dirty_bitmap_get {
            iova: range.start(),
            size: range.length(),
            bitmap: named(page, bitmap),
        },
    };
    // SAFETY: `argument` is as long as its first field states, the array that it refers to has the stated length, and
    // both outlive the call.
    unsafe { submit(container, IOMMU_DIRTY_PAGES, (&raw mut argument).cast()) }.map(drop)
}

/// Unmaps every entry inside `range`; returns the number of bytes unmapped. `bitmap` receives what [`read`] would
/// have reported for those entries.
pub(crate) fn unmap(
    container: BorrowedFd<'_>,
    range: IovaRange,
    page: u64,
    bitmap: &mut [u64],
) -> KernelResult<u64> {
    let mut argument = Unmap {
        head: vfio_iommu_type1_dma_unmap {
            argsz: size_of::<Unmap>() as u32,
            flags: uapi::VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
            iova: range.start(),
            size: range.length(),
            ..Default::default()
        },
        bitmap: named(page, bitmap),
    };
    // SAFETY: as for `read`.
    unsafe { submit(container, IOMMU_UNMAP_DMA, (&raw mut argument).cast()) }?;
    Ok(argument.head.size)
}

fn named(page: u64, bitmap: &mut [u64]) -> vfio_bitmap {
    vfio_bitmap { pgsize: page, size: size_of_val(bitmap) as u64, data: bitmap.as_mut_ptr() }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;
    use crate::addr::Iova;
    use crate::error::Errno;

    #[test]
    fn what_is_not_a_container_answers_enotty() {
        let file = File::open("/proc/self/status").unwrap();
        let (fd, range) = (file.as_fd(), IovaRange::new(Iova(0), 4096).unwrap());
        let tried =
            [track(fd, true), read(fd, range, 4096, &mut [0]), unmap(fd, range, 4096, &mut [0]).map(drop)];
        assert_eq!(tried, [Err(Errno::ENOTTY); 3]);
    }
}
