//! Which pages devices have written to.

use std::ffi::c_int;

use crate::abi::vfio_fast_dirty;
use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::{array, convert, out, sized};

/// Starts or stops tracking the pages that devices write to, as migration needs it.
///
/// Starting or stopping twice is not an error. If the kernel cannot know what a device writes to, all memory that the
/// device can access counts as written to.
///
/// - vf: the handle
/// - on: 1 to start, 0 to stop
///
/// # Returns
/// 0, a common error, or
/// - -EOPNOTSUPP: on is neither 0 nor 1; the container does not track dirty pages (no IOAS does, type1 only since Linux
///   5.8)
/// - another errno from the kernel
///
/// # Threads
/// Any thread; waits for other calls on the same handle.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_track_dirty(vf: *mut vfio_fast, on: u32) -> c_int {
    let body = |handle: &vfio_fast| {
        convert::known("vfio_fast_track_dirty: on", on, 1)?;
        Ok(handle.engine.track_dirty(on != 0)?)
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Reports which pages of a range were written to since they were last reported, or since tracking started.
///
/// The call sets the bits of these pages and leaves all other bits unchanged. A call that fails may have set some
/// bits; their pages are not reported again.
///
/// The range does not have to match a region. The kernel is asked about whole kernel entries, in as many calls as its
/// largest bitmap requires. What it reports for pages outside the range is kept until those pages are read.
///
/// - vf: the handle
/// - dirty: the range and the bitmap
///
/// # Returns
/// 0, a common error, or
/// - -EINVAL: dirty pages are not tracked; page_size is not the smallest IOMMU page; iova or length is not a multiple
///   of it; length is 0; the range extends past 2^64; bits is NULL, misaligned, larger than the address space, or has
///   less than one bit for each page
/// - -EOPNOTSUPP: the container does not track dirty pages
/// - another errno from the kernel
///
/// # Threads
/// Any thread; waits for other calls on the same handle.
///
/// # Safety
/// See Pointers; the array bits is NULL or holds that many words, which nothing else uses during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_read_dirty(vf: *mut vfio_fast, dirty: *const vfio_fast_dirty) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: dirty is as this function's contract says.
        let dirty = unsafe { sized::read(dirty) }?;
        let range = convert::dirty_range(&dirty, handle.engine.page())?;
        // SAFETY: as this function's contract says of the bitmap.
        let bits = unsafe { array::words(dirty.bits, dirty.words, "struct vfio_fast_dirty: bits") }?;
        Ok(handle.engine.read_dirty(range, bits)?)
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Unmaps a range as vfio_fast_unmap() does, and reports its dirty pages as vfio_fast_read_dirty() does.
///
/// This cannot be done in a transaction, where the range would be unmapped only later.
///
/// - vf: the handle
/// - dirty: the range and the bitmap. If the call fails, the bits of pages that it has unmapped are set.
/// - unmapped: receives the number of bytes in the range that were wanted. May be NULL.
///
/// # Returns
/// 0, or
/// - -EBUSY: a transaction is open, of this thread or of another one
/// - any error of vfio_fast_read_dirty(), or of vfio_fast_unmap() outside a transaction
///
/// # Threads
/// Any thread; waits for other calls on the same handle.
///
/// # Safety
/// As for vfio_fast_read_dirty().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_unmap_dirty(
    vf: *mut vfio_fast,
    dirty: *const vfio_fast_dirty,
    unmapped: *mut u64,
) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: dirty is as this function's contract says.
        let dirty = unsafe { sized::read(dirty) }?;
        let range = convert::dirty_range(&dirty, handle.engine.page())?;
        // SAFETY: as this function's contract says of the bitmap.
        let bits = unsafe { array::words(dirty.bits, dirty.words, "struct vfio_fast_dirty: bits") }?;
        let bytes = handle.engine.unmap_dirty(range, bits)?;
        // SAFETY: unmapped is as this function's contract says.
        unsafe { out::write_optional(unmapped, bytes) };
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}
