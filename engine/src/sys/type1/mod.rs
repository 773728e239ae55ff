//! The ioctls of a VFIO container with a type1 IOMMU.
#![allow(unsafe_code)]

pub(crate) mod dirty;
pub(crate) mod info;

use std::mem::{offset_of, size_of};
use std::os::fd::BorrowedFd;

use vfio_bindings::bindings::vfio as uapi;
use vfio_bindings::bindings::vfio::{
    vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_iommu_type1_info,
};

use super::ioctl::submit;
use crate::addr::{HostVa, Iova};
use crate::error::{Error, KernelResult, Op, Result};

/// `_IO(VFIO_TYPE, VFIO_BASE + number)`. VFIO's requests encode neither size nor direction: the first field of each
/// struct is its length.
const fn request(number: u32) -> libc::c_ulong {
    let code = (uapi::VFIO_TYPE as u32) << uapi::_IOC_TYPESHIFT | (uapi::VFIO_BASE + number);
    code as libc::c_ulong
}

const GET_API_VERSION: libc::c_ulong = request(0);
const CHECK_EXTENSION: libc::c_ulong = request(1);
const IOMMU_GET_INFO: libc::c_ulong = request(12);
const IOMMU_MAP_DMA: libc::c_ulong = request(13);
const IOMMU_UNMAP_DMA: libc::c_ulong = request(14);

const _: () = {
    assert!(GET_API_VERSION == 0x3b64 && CHECK_EXTENSION == 0x3b65 && IOMMU_GET_INFO == 0x3b70);
    assert!(IOMMU_MAP_DMA == 0x3b71 && IOMMU_UNMAP_DMA == 0x3b72);
    assert!(size_of::<usize>() == size_of::<u64>());
};

const _: () = {
    use vfio_iommu_type1_dma_map as map;
    assert!(size_of::<map>() == 32 && offset_of!(map, argsz) == 0 && offset_of!(map, flags) == 4);
    assert!(offset_of!(map, vaddr) == 8 && offset_of!(map, iova) == 16 && offset_of!(map, size) == 24);
    use vfio_iommu_type1_dma_unmap as unmap;
    assert!(size_of::<unmap>() == 24 && offset_of!(unmap, argsz) == 0 && offset_of!(unmap, flags) == 4);
    assert!(offset_of!(unmap, iova) == 8 && offset_of!(unmap, size) == 16);
};

/// Maximum length of the description in bytes. The kernel needs a few hundred; a file that needs more than this is
/// not a container.
const MAX_INFO_BYTES: usize = 1 << 20;

/// Reads the version of the VFIO interface of `container`.
pub(crate) fn api_version(container: BorrowedFd<'_>) -> KernelResult<libc::c_int> {
    // SAFETY: this request takes no argument.
    unsafe { submit(container, GET_API_VERSION, std::ptr::null_mut()) }
}

/// Whether another process can take over the entries of `container` (VFIO_UPDATE_VADDR, Linux 5.12).
pub(crate) fn updates_vaddr(container: BorrowedFd<'_>) -> bool {
    let number = std::ptr::without_provenance_mut(uapi::VFIO_UPDATE_VADDR as usize);
    // SAFETY: the argument of this request is a number, not a pointer.
    unsafe { submit(container, CHECK_EXTENSION, number) }.is_ok_and(|answer| answer > 0)
}

/// Maps the `size` bytes at `hva` to `iova` for devices, writable if `writable`.
pub(crate) fn map(
    container: BorrowedFd<'_>,
    iova: Iova,
    hva: HostVa,
    size: u64,
    writable: bool,
) -> KernelResult<()> {
    let write = if writable { uapi::VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
    map_dma(container, iova, hva, size, uapi::VFIO_DMA_MAP_FLAG_READ | write)
}

/// Sets the host address of the entry that is exactly the `size` bytes at `iova`, and that has none, to `hva`.
pub(crate) fn set_vaddr(container: BorrowedFd<'_>, iova: Iova, hva: HostVa, size: u64) -> KernelResult<()> {
    map_dma(container, iova, hva, size, uapi::VFIO_DMA_MAP_FLAG_VADDR)
}

fn map_dma(container: BorrowedFd<'_>, iova: Iova, hva: HostVa, size: u64, flags: u32) -> KernelResult<()> {
    let mut argument = vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
        flags,
        vaddr: hva.raw(),
        iova: iova.0,
        size,
    };
    // SAFETY: `argument` is as long as its first field states and outlives the call. The creator of the `HostVa`
    // guaranteed that the memory may be mapped.
    unsafe { submit(container, IOMMU_MAP_DMA, (&raw mut argument).cast()) }.map(drop)
}

/// The extent of an unmap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Extent {
    /// A number of bytes from an IOVA on.
    Bytes(Iova, u64),
    /// The whole 64-bit space, which has no length in 64 bits (VFIO_UNMAP_ALL, Linux 5.12).
    All,
}

/// Unmaps every entry inside `extent`; returns the number of bytes unmapped.
pub(crate) fn unmap(container: BorrowedFd<'_>, extent: Extent) -> KernelResult<u64> {
    unmap_dma(container, extent, 0)
}

/// Invalidates the host address of every entry inside `extent`. Devices keep their access.
pub(crate) fn invalidate_vaddr(container: BorrowedFd<'_>, extent: Extent) -> KernelResult<()> {
    unmap_dma(container, extent, uapi::VFIO_DMA_UNMAP_FLAG_VADDR).map(drop)
}

fn unmap_dma(container: BorrowedFd<'_>, extent: Extent, flags: u32) -> KernelResult<u64> {
    let (all, iova, size) = match extent {
        Extent::Bytes(iova, size) => (0, iova.0, size),
        Extent::All => (uapi::VFIO_DMA_UNMAP_FLAG_ALL, 0, 0),
    };
    let mut argument = vfio_iommu_type1_dma_unmap {
        argsz: size_of::<vfio_iommu_type1_dma_unmap>() as u32,
        flags: flags | all,
        iova,
        size,
        ..Default::default()
    };
    // SAFETY: `argument` is as long as its first field states (it requests no dirty bitmap, which could follow) and
    // outlives the call.
    unsafe { submit(container, IOMMU_UNMAP_DMA, (&raw mut argument).cast()) }?;
    Ok(argument.size)
}

/// Reads the description of the container: a `vfio_iommu_type1_info` and the capabilities after it, as bytes.
pub(crate) fn info(container: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut length = size_of::<vfio_iommu_type1_info>();
    loop {
        // The kernel requires no alignment of the buffer; the parser reads single bytes.
        let mut bytes = vec![0u8; length];
        let argsz =
            u32::try_from(length).map_err(|_| Error::malformed("the answer does not fit a struct"))?;
        bytes[..size_of::<u32>()].copy_from_slice(&argsz.to_ne_bytes());
        // SAFETY: `bytes` starts with its own length, and outlives the call.
        unsafe { submit(container, IOMMU_GET_INFO, bytes.as_mut_ptr().cast()) }
            .map_err(|errno| Error::kernel(Op::Info, errno))?;
        let wanted = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        if wanted <= length {
            return Ok(bytes);
        }
        // The capabilities did not fit and were left out. They can have grown again by the next call, but each buffer
        // is longer than the one before.
        if wanted > MAX_INFO_BYTES {
            return Err(Error::malformed("the container asks for more than a mebibyte to describe itself"));
        }
        length = wanted;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;
    use crate::error::Errno;

    #[test]
    fn what_is_not_a_container_answers_enotty() {
        let file = File::open("/proc/self/status").unwrap();
        let fd = file.as_fd();
        let tried = [
            api_version(fd).map(drop),
            map(fd, Iova(0), HostVa::from_raw(0), 0x1000, true),
            unmap(fd, Extent::Bytes(Iova(0), 0x1000)).map(drop),
            unmap(fd, Extent::All).map(drop),
            set_vaddr(fd, Iova(0), HostVa::from_raw(0), 0x1000),
            invalidate_vaddr(fd, Extent::All),
        ];
        assert_eq!(tried, [Err(Errno::ENOTTY); 6]);
        assert!(!updates_vaddr(fd));
        assert_eq!(info(fd).unwrap_err(), Error::kernel(Op::Info, Errno::ENOTTY));
    }
}
