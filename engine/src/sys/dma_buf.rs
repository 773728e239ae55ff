//! The BARs of VFIO devices as dma-bufs, which iommufd can map where it refuses their host addresses.
#![allow(unsafe_code)]

use std::mem::{offset_of, size_of};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use vfio_bindings::bindings::vfio as uapi;

use super::ioctl::submit;
use crate::error::KernelResult;

/// `_IO(VFIO_TYPE, VFIO_BASE + 17)`
const DEVICE_FEATURE: libc::c_ulong = 0x3b75;
/// VFIO_DEVICE_FEATURE_DMA_BUF, since Linux 6.19: newer than the published bindings.
const DMA_BUF: u32 = 11;

/// `struct vfio_device_feature` with a `struct vfio_device_feature_dma_buf` of one range.
#[repr(C)]
#[derive(Default)]
struct ExportRange {
    argsz: u32,
    flags: u32,
    region_index: u32,
    open_flags: u32,
    reserved: u32,
    nr_ranges: u32,
    offset: u64,
    length: u64,
}

const _: () = {
    assert!(size_of::<ExportRange>() == 40 && offset_of!(ExportRange, region_index) == 8);
    assert!(offset_of!(ExportRange, open_flags) == 12 && offset_of!(ExportRange, nr_ranges) == 20);
    assert!(offset_of!(ExportRange, offset) == 24 && offset_of!(ExportRange, length) == 32);
};

/// Creates a dma-buf of `length` bytes of a BAR, from `offset` on. When the device stops decoding its memory, the
/// kernel removes the mappings of the dma-buf, and does not restore them. Returns ENOTTY if the kernel or the device
/// does not support this.
pub(crate) fn export(
    device: BorrowedFd<'_>,
    region_index: u32,
    offset: u64,
    length: u64,
) -> KernelResult<OwnedFd> {
    let mut argument = ExportRange {
        argsz: size_of::<ExportRange>() as u32,
        flags: uapi::VFIO_DEVICE_FEATURE_GET | DMA_BUF,
        region_index,
        open_flags: (libc::O_RDWR | libc::O_CLOEXEC) as u32,
        nr_ranges: 1,
        offset,
        length,
        ..ExportRange::default()
    };
    // SAFETY: `argument` is as long as its first field states and outlives the call.
    let fd = unsafe { submit(device, DEVICE_FEATURE, (&raw mut argument).cast()) }?;
    // SAFETY: the kernel has just created this descriptor, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;
    use crate::error::Errno;

    #[test]
    fn the_struct_is_the_published_one_with_its_payload() {
        assert_eq!(offset_of!(ExportRange, flags), offset_of!(uapi::vfio_device_feature, flags));
        assert_eq!(offset_of!(ExportRange, region_index), size_of::<uapi::vfio_device_feature>());
        assert_eq!(uapi::VFIO_DEVICE_FEATURE_GET | DMA_BUF, 1 << 16 | 11);
    }

    #[test]
    fn what_is_no_device_exports_nothing() {
        let file = File::open("/dev/null").unwrap();
        assert_eq!(export(file.as_fd(), 0, 0, 0x1000).unwrap_err(), Errno::ENOTTY);
    }
}
