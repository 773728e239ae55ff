//! Mapping and unmapping regions.

use std::ffi::c_int;

use vfio_fast_engine::host_va;

use crate::abi::{vfio_fast_range, vfio_fast_region};
use crate::convert;
use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::{out, sized};

/// Wants a region: the device may reach it from when this returns (outside a transaction) or from the commit on. All or
/// nothing: if it fails, nothing of the region is mapped or wanted.
///
/// - vf: the handle.
/// - region: what to map. Only read during the call.
///
/// # Returns
/// 0, or
/// - -EINVAL: a pointer is NULL; the struct is too short; iova, length or hva is not a multiple of the smallest IOMMU
///   page; length is 0; the region reaches past the end of an address space; with VFIO_FAST_REGION_FD and a backend that
///   has use for it also: fd_offset is no such multiple, backing is 0, or other regions with this backing have another
///   file or BAR, or other offsets in it
/// - -EBADF, -EMFILE: fd is not open, or cannot be duplicated
/// - -E2BIG: the struct is too long (the size rule)
/// - -EOPNOTSUPP: unknown flags
/// - -EEXIST: a wanted region overlaps it
/// - outside a transaction also every errno of vfio_fast_commit(), and for a device region the kernel's refusal
/// - -EDEADLK, -ENOTRECOVERABLE: see the top of this file
///
/// # Threads
/// Any; waits for a running call on the same handle.
///
/// # Safety
/// vf as for vfio_fast_begin(); region is NULL or points to as many bytes as its size says. From this call until the
/// region is unmapped, or closing has succeeded, the memory at region->hva stays mapped to the same pages and may be
/// read, and with VFIO_FAST_REGION_WRITE written, by the device at any time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_map_region(vf: *mut vfio_fast, region: *const vfio_fast_region) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: region is as this function's contract says.
        let region = unsafe { sized::read(region) }?;
        // SAFETY: this function's contract says of region.length bytes from region.hva on what host_va() demands.
        let hva = unsafe { host_va(region.hva) };
        let wanted = convert::region(&region, hva)?;
        match convert::object(&region) {
            Some(object) => handle.engine.map_object(wanted, &object)?,
            None => handle.engine.map_region(wanted)?,
        }
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Does not want anything in a range any more: no device can reach it from when this returns (outside a transaction) or
/// from the commit on. Regions that only partly lie in the range keep the rest; where a cut falls inside a kernel entry,
/// that rest is unmapped and mapped again, and a device using it meanwhile sees an error. Nothing there to unmap is a
/// success.
///
/// - vf: the handle.
/// - range: what to unmap. Only read during the call.
/// - unmapped: receives how many bytes were taken out of what was wanted. May be NULL. Written only on success.
///
/// # Returns
/// 0, or
/// - -EINVAL: vf or range is NULL; the struct is too short; iova or length is not a multiple of the smallest IOMMU page;
///   length is 0; the range reaches past 2^64; it cuts a region with VFIO_FAST_REGION_EXACT
/// - -E2BIG: the struct is too long (the size rule)
/// - -EOPNOTSUPP: unknown flags
/// - outside a transaction also every errno of vfio_fast_commit()
/// - -EDEADLK, -ENOTRECOVERABLE: see the top of this file
///
/// # Threads
/// Any; waits for a running call on the same handle.
///
/// # Safety
/// vf as for vfio_fast_begin(); range is NULL or points to as many bytes as its size says; unmapped is NULL or points to
/// a uint64_t.
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
