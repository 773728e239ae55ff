//! Mapping and unmapping regions.

use std::ffi::c_int;

use vfio_fast_engine::{Descriptor, host_va};

use crate::abi::{vfio_fast_range, vfio_fast_region};
use crate::convert;
use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::{out, sized};

/// Maps a region for DMA.
///
/// Outside a transaction the device can access the region once this call returns; inside one, once vfio_fast_commit()
/// succeeds. If the call fails, no part of the region is mapped or wanted.
///
/// - vf: the handle
/// - region: the region to map; read only during the call
///
/// # Returns
/// 0, a common error, or
/// - -EINVAL: iova, length or hva is not a multiple of the smallest IOMMU page; length is 0; the region extends past
///   the end of an address space
/// - -EINVAL, with VFIO_FAST_REGION_FD on a backend that uses it: fd_offset is not a multiple of the smallest IOMMU
///   page; backing is 0; other regions with this backing have a different file or BAR, or different offsets in it
/// - -EBADF, -EMFILE: fd is not open or cannot be duplicated
/// - -EEXIST: the region overlaps a wanted region
/// - outside a transaction: any error of vfio_fast_commit(), and for device memory the errno from the kernel
///
/// # Threads
/// Any thread; waits for other calls on the same handle.
///
/// # Safety
/// See Pointers. From this call until the region is unmapped, or until vfio_fast_close() has returned 0, the memory
/// at region->hva stays mapped to the same pages, and the device may read it, and with VFIO_FAST_REGION_WRITE write
/// it, at any time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_map_region(vf: *mut vfio_fast, region: *const vfio_fast_region) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: region is as this function's contract says.
        let region = unsafe { sized::read(region) }?;
        // SAFETY: this function's contract says of region.length bytes from region.hva on what host_va() demands.
        let wanted = convert::region(&region, unsafe { host_va(region.hva) })?;
        // SAFETY: struct vfio_fast_region says that fd is the caller's own until this call returns.
        let fd = unsafe { Descriptor::from_raw(region.fd) };
        match convert::object(&region, fd) {
            Some(object) => handle.engine.map_object(wanted, &object)?,
            None => handle.engine.map_region(wanted)?,
        }
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Unmaps everything in a range of device addresses.
///
/// Outside a transaction no device can access the range once this call returns; inside one, once vfio_fast_commit()
/// succeeds. It is not an error if nothing is mapped in the range.
///
/// Regions that lie only partly in the range keep the rest. If the range ends inside a kernel entry, the library
/// unmaps the whole entry and maps the rest again; a device that accesses the rest in between gets an error (see
/// Access). remapped_bytes in struct vfio_fast_stats counts the rest.
///
/// If the unmap itself fails, the range is not wanted any more, but may still be mapped (see Failed commits). The same
/// call then tries again.
///
/// - vf: the handle
/// - range: the range to unmap; read only during the call
/// - unmapped: receives the number of bytes in the range that were wanted. May be NULL.
///
/// # Returns
/// 0, a common error, or
/// - -EINVAL: iova or length is not a multiple of the smallest IOMMU page; length is 0; the range extends past 2^64;
///   the range covers only a part of a region with VFIO_FAST_REGION_EXACT
/// - outside a transaction: any error of vfio_fast_commit()
///
/// # Threads
/// Any thread; waits for other calls on the same handle.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_unmap(
    vf: *mut vfio_fast,
    range: *const vfio_fast_range,
    unmapped: *mut u64,
) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: range is as this function's contract says.
        let range = unsafe { sized::read(range) }?;
        let bytes = handle.engine.unmap(convert::range(&range)?)?;
        // SAFETY: unmapped is as this function's contract says.
        unsafe { out::write_optional(unmapped, bytes) };
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}
