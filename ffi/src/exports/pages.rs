//! Mapping and unmapping arrays of pages.

use std::ffi::c_int;

use vfio_fast_engine::addr::Iova;
use vfio_fast_engine::host_va;
use vfio_fast_engine::region::Backing;

use crate::abi::vfio_fast_pages;
use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::{array, convert, out, sized};

/// Wants an array of pages, each of the smallest IOMMU page: the device may reach them from when this returns (outside a
/// transaction) or from the commit on. All or nothing: if it fails, no page of the array is mapped or wanted.
///
/// Pages that follow each other in the array, for the device and in host memory take one map call and one kernel entry:
/// device pages {1, 5, 6, 7, 9} at such host addresses are three. With a backing that is not 0, entries join whatever order
/// the array has. The memory is ordinary RAM.
///
/// - vf: the handle.
/// - pages: what to map. It and its arrays are only read during the call.
///
/// # Returns
/// 0, or
/// - -EINVAL: a pointer is NULL; the struct is too short; an address is not a multiple of the smallest IOMMU page; an
///   array is not aligned, or longer than memory can be
/// - -E2BIG: the struct is too long (the size rule)
/// - -EOPNOTSUPP: unknown flags
/// - -EEXIST: a page overlaps a wanted region, or is twice in the array
/// - outside a transaction also every errno of vfio_fast_commit()
/// - -EDEADLK, -ENOTRECOVERABLE: see the top of this file
///
/// # Threads
/// Any; waits for a running call on the same handle.
///
/// # Safety
/// vf as for vfio_fast_begin(); pages is NULL or points to as many bytes as its size says, and its arrays are NULL or hold
/// count numbers, which nobody changes during the call. The memory of the pages is as vfio_fast_map_region() demands of a
/// region's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_map_pages(vf: *mut vfio_fast, pages: *const vfio_fast_pages) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: pages is as this function's contract says.
        let pages = unsafe { sized::read(pages) }?;
        let perm = convert::pages_perm(&pages)?;
        // SAFETY: so is this array of it,
        let iovas = unsafe { array::numbers(pages.iovas, pages.count, "struct vfio_fast_pages: iovas") }?;
        // SAFETY: and this one.
        let hvas = unsafe { array::numbers(pages.hvas, pages.count, "struct vfio_fast_pages: hvas") }?;
        // SAFETY: this function's contract says of the page at each of them what host_va() demands.
        let hvas = hvas.iter().map(|hva| unsafe { host_va(*hva) });
        let addresses = iovas.iter().copied().map(Iova).zip(hvas);
        Ok(handle.engine.map_pages(addresses, perm, Backing(pages.backing))?)
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Does not want the pages of an array any more, wherever they came from: no device can reach them from when this returns
/// (outside a transaction) or from the commit on. All or nothing. A page where nothing is wanted is no error.
///
/// Adjacent kernel entries go in one call. Where a page is a part of an entry, the entry is unmapped and the rest of it
/// mapped again; a device using the rest meanwhile sees an error. remapped_bytes in struct vfio_fast_stats counts the
/// rest.
///
/// - vf: the handle.
/// - pages: what to unmap. It and its array of device addresses are only read during the call.
/// - unmapped: receives how many bytes were taken out of what was wanted. May be NULL. Written only on success.
///
/// # Returns
/// 0, or
/// - -EINVAL: vf, pages or the array is NULL; the struct is too short; an address is not a multiple of the smallest IOMMU
///   page; a page cuts a region with VFIO_FAST_REGION_EXACT; the array is not aligned, or longer than memory can be
/// - -E2BIG: the struct is too long (the size rule)
/// - -EOPNOTSUPP: unknown flags
/// - outside a transaction also every errno of vfio_fast_commit()
/// - -EDEADLK, -ENOTRECOVERABLE: see the top of this file
///
/// # Threads
/// Any; waits for a running call on the same handle.
///
/// # Safety
/// vf as for vfio_fast_begin(); pages is NULL or points to as many bytes as its size says, and its iovas is NULL or holds
/// count numbers, which nobody changes during the call; unmapped is NULL or points to a uint64_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_unmap_pages(
    vf: *mut vfio_fast,
    pages: *const vfio_fast_pages,
    unmapped: *mut u64,
) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: pages is as this function's contract says.
        let pages = unsafe { sized::read(pages) }?;
        convert::pages_perm(&pages)?;
        // SAFETY: so is this array of it.
        let iovas = unsafe { array::numbers(pages.iovas, pages.count, "struct vfio_fast_pages: iovas") }?;
        let bytes = handle.engine.unmap_pages(iovas.iter().copied().map(Iova))?;
        // SAFETY: unmapped is as this function's contract says.
        unsafe { out::write_optional(unmapped, bytes) };
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}
