//! Mapping and unmapping arrays of pages.

use std::ffi::c_int;

use vfio_fast_engine::addr::Iova;
use vfio_fast_engine::host_va;
use vfio_fast_engine::region::Backing;

use crate::abi::vfio_fast_pages;
use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::{array, convert, out, sized};

/// Maps an array of pages of RAM for DMA, each as large as the smallest IOMMU page.
///
/// Outside a transaction the device can access the pages once this call returns; inside one, once vfio_fast_commit()
/// succeeds. If the call fails, no page of the array is mapped or wanted.
///
/// Pages that are consecutive in the array, in device addresses and in host memory become one region, which takes one
/// map call and one kernel entry: device pages {1, 5, 6, 7, 9} at corresponding host addresses take three. With
/// VFIO_FAST_REGION_JOIN and a backing other than 0, adjacent pages share entries whatever their order in the array,
/// and also with regions of other calls that have the flag.
///
/// - vf: the handle
/// - pages: the pages to map; read, with its arrays, only during the call
///
/// # Returns
/// 0, a common error, or
/// - -EINVAL: an array is NULL, misaligned, or larger than the address space; an address is not a multiple of the
///   smallest IOMMU page
/// - -EEXIST: a page overlaps a wanted region or is in the array twice
/// - outside a transaction: any error of vfio_fast_commit()
///
/// # Threads
/// Any thread; waits for other calls on the same handle.
///
/// # Safety
/// See Pointers; the arrays are NULL or hold count numbers. The memory of each page is subject to the rules of
/// vfio_fast_map_region().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_map_pages(vf: *mut vfio_fast, pages: *const vfio_fast_pages) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: pages is as this function's contract says.
        let pages = unsafe { sized::read(pages) }?;
        let (perm, join) = convert::pages_flags(&pages)?;
        // SAFETY: as this function's contract says of the arrays.
        let iovas = unsafe { array::numbers(pages.iovas, pages.count, "struct vfio_fast_pages: iovas") }?;
        // SAFETY: as above.
        let hvas = unsafe { array::numbers(pages.hvas, pages.count, "struct vfio_fast_pages: hvas") }?;
        // SAFETY: this function's contract says of the page at each of them what host_va() demands.
        let hvas = hvas.iter().map(|hva| unsafe { host_va(*hva) });
        let addresses = iovas.iter().copied().map(Iova).zip(hvas);
        Ok(handle.engine.map_pages(addresses, perm, Backing(pages.backing), join)?)
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Unmaps an array of pages, each as large as the smallest IOMMU page, whichever call mapped them.
///
/// Outside a transaction no device can access the pages once this call returns; inside one, once vfio_fast_commit()
/// succeeds. An invalid page makes the call fail before any page is unmapped. A page that is not wanted is not an
/// error.
///
/// Adjacent kernel entries are unmapped in one call. If a page is only a part of a kernel entry, the library unmaps
/// the whole entry and maps the rest again; a device that accesses the rest in between gets an error (see Access).
/// remapped_bytes in struct vfio_fast_stats counts the rest.
///
/// - vf: the handle
/// - pages: the pages to unmap; read, with its array iovas, only during the call
/// - unmapped: receives the number of bytes in the pages that were wanted. May be NULL.
///
/// # Returns
/// 0, a common error, or
/// - -EINVAL: the array is NULL, misaligned, or larger than the address space; an address is not a multiple of the
///   smallest IOMMU page; a page is only a part of a region with VFIO_FAST_REGION_EXACT
/// - outside a transaction: any error of vfio_fast_commit()
///
/// # Threads
/// Any thread; waits for other calls on the same handle.
///
/// # Safety
/// See Pointers; the array iovas is NULL or holds count numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_unmap_pages(
    vf: *mut vfio_fast,
    pages: *const vfio_fast_pages,
    unmapped: *mut u64,
) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: pages is as this function's contract says.
        let pages = unsafe { sized::read(pages) }?;
        convert::pages_flags(&pages)?;
        // SAFETY: as this function's contract says of the array.
        let iovas = unsafe { array::numbers(pages.iovas, pages.count, "struct vfio_fast_pages: iovas") }?;
        let bytes = handle.engine.unmap_pages(iovas.iter().copied().map(Iova))?;
        // SAFETY: unmapped is as this function's contract says.
        unsafe { out::write_optional(unmapped, bytes) };
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}
