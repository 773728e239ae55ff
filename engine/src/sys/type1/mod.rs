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
use crate::error::{Errno, Error, Op, Result, Why};

/// `_IO(VFIO_TYPE, VFIO_BASE + number)`. VFIO's requests encode neither size nor direction: each struct says itself how
/// long it is, in its first field.
const fn request(number: u32) -> libc::c_ulong {
    let code = (uapi::VFIO_TYPE as u32) << uapi::_IOC_TYPESHIFT | (uapi::VFIO_BASE + number);
    code as libc::c_ulong
}

const GET_API_VERSION: libc::c_ulong = request(0);
const IOMMU_GET_INFO: libc::c_ulong = request(12);
const IOMMU_MAP_DMA: libc::c_ulong = request(13);
const IOMMU_UNMAP_DMA: libc::c_ulong = request(14);

const _: () = {
    assert!(GET_API_VERSION == 0x3b64 && IOMMU_GET_INFO == 0x3b70);
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

/// The most GET_INFO may ask for, in bytes. The kernel's answer is a few hundred; a container that wants more than this
/// is not one.
const INFO_MOST: usize = 1 << 20;

/// The version of the VFIO interface behind `container`.
pub(crate) fn api_version(container: BorrowedFd<'_>) -> Result<libc::c_int> {
    // SAFETY: this request takes no argument.
    unsafe { submit(Op::Open, container, GET_API_VERSION, std::ptr::null_mut()) }
}

/// Lets devices read, and if `writable` also write, the `size` bytes at `hva` through `iova`.
pub(crate) fn map(
    container: BorrowedFd<'_>,
    iova: Iova,
    hva: HostVa,
    size: u64,
    writable: bool,
) -> Result<()> {
    let write = if writable { uapi::VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
    let mut argument = vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
        flags: uapi::VFIO_DMA_MAP_FLAG_READ | write,
        vaddr: hva.raw(),
        iova: iova.0,
        size,
    };
    // SAFETY: `argument` is as long as its first field says and lives through the call. Whoever made the `HostVa`
    // vouched for the memory.
    unsafe { submit(Op::Map, container, IOMMU_MAP_DMA, (&raw mut argument).cast()) }.map(drop)
}

/// What an unmap is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Extent {
    /// So many bytes from here on.
    Bytes(Iova, u64),
    /// The whole 64-bit space, whose size no 64-bit number can say (VFIO_UNMAP_ALL, Linux 5.12).
    All,
}

/// Takes away every entry inside `extent`, and answers how many bytes those were.
pub(crate) fn unmap(container: BorrowedFd<'_>, extent: Extent) -> Result<u64> {
    let (flags, iova, size) = match extent {
        Extent::Bytes(iova, size) => (0, iova.0, size),
        Extent::All => (uapi::VFIO_DMA_UNMAP_FLAG_ALL, 0, 0),
    };
    let mut argument = vfio_iommu_type1_dma_unmap {
        argsz: size_of::<vfio_iommu_type1_dma_unmap>() as u32,
        flags,
        iova,
        size,
        ..Default::default()
    };
    // SAFETY: `argument` is as long as its first field says (the dirty bitmap that may follow it is not asked for) and
    // lives through the call.
    unsafe { submit(Op::Unmap, container, IOMMU_UNMAP_DMA, (&raw mut argument).cast()) }?;
    Ok(argument.size)
}

/// What the container says of itself: a `vfio_iommu_type1_info` and the capabilities behind it, as bytes.
pub(crate) fn info(container: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let malformed =
        |text| Error { op: Op::Info, errno: Errno::EIO, range: None, hva: None, why: Why::Other(text) };
    let mut length = size_of::<vfio_iommu_type1_info>();
    loop {
        // The kernel asks for no alignment of what it copies; the parser reads single bytes.
        let mut bytes = vec![0u8; length];
        let argsz = u32::try_from(length).map_err(|_| malformed("the answer does not fit a struct"))?;
        bytes[..size_of::<u32>()].copy_from_slice(&argsz.to_ne_bytes());
        // SAFETY: `bytes` starts with its own length, and lives through the call.
        unsafe { submit(Op::Info, container, IOMMU_GET_INFO, bytes.as_mut_ptr().cast()) }?;
        let wanted = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        if wanted <= length {
            return Ok(bytes);
        }
        // The capabilities did not fit and were left out. They can have grown again by the time of the next call, but
        // each round is longer than the one before.
        if wanted > INFO_MOST {
            return Err(malformed("the container asks for more than a mebibyte to describe itself"));
        }
        length = wanted;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_container_answers_with_the_operation_and_the_errno() {
        let file = File::open("/proc/self/status").unwrap();
        let fd = file.as_fd();
        let tried = [
            (Op::Open, api_version(fd).map(drop)),
            (Op::Info, info(fd).map(drop)),
            (Op::Map, map(fd, Iova(0), HostVa::from_raw(0), 0x1000, true)),
            (Op::Unmap, unmap(fd, Extent::Bytes(Iova(0), 0x1000)).map(drop)),
            (Op::Unmap, unmap(fd, Extent::All).map(drop)),
        ];
        for (op, result) in tried {
            let error = result.unwrap_err();
            assert_eq!((error.op, error.errno, error.why), (op, Errno(libc::ENOTTY), Why::Kernel));
        }
    }
}
