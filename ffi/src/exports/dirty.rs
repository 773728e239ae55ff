//! Which pages devices have written to.

use std::ffi::c_int;

use crate::abi::vfio_fast_dirty;
use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::{array, convert, out, sized};

/// Begins to track which pages devices write to, or ends to, as a migration needs it. Both may be the case already. Where the
/// kernel does not know what a device writes to, everything the device can reach counts as written to.
///
/// - vf: the handle.
/// - on: 1 to begin, 0 to end.
///
/// # Returns
/// 0, or
/// - -EINVAL: vf is NULL
/// - -EOPNOTSUPP: on is neither; this container does not track dirty pages (no container of iommufd does, nor one of type1
///   before Linux 5.8)
/// - another negative errno the kernel gave
/// - -EDEADLK, -ENOTRECOVERABLE: see the top of this file
///
/// # Threads
/// Any; waits for a running call on the same handle.
///
/// # Safety
/// vf as for vfio_fast_begin().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_track_dirty(vf: *mut vfio_fast, on: u32) -> c_int {
    let body = |handle: &vfio_fast| {
        convert::known("vfio_fast_track_dirty: on", on, 1)?;
        Ok(handle.engine.track_dirty(on != 0)?)
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Tells which pages of a range were written to since they were last told, or since tracking began. The range need not be
/// that of a region: the kernel is asked for whole entries, in as many calls as its largest bitmap demands, and what it tells
/// of other pages is kept until they are asked for.
///
/// - vf: the handle.
/// - dirty: the range, and the bitmap. Bits of pages that were written to are set, others are left as they are; a call that
///   fails may have set some, which are not told again.
///
/// # Returns
/// 0, or
/// - -EINVAL: a pointer is NULL; the struct is too short; dirty pages are not tracked; page_size is not the smallest IOMMU
///   page; iova or length is not a multiple of it; length is 0; bits is not aligned, or has less than a bit for each page
/// - -E2BIG: the struct is too long (the size rule)
/// - -EOPNOTSUPP: unknown flags; this container does not track dirty pages
/// - another negative errno the kernel gave
/// - -EDEADLK, -ENOTRECOVERABLE: see the top of this file
///
/// # Threads
/// Any; waits for a running call on the same handle.
///
/// # Safety
/// vf as for vfio_fast_begin(); dirty is NULL or points to as many bytes as its size says, and its bits is NULL or points to
/// so many words, which nobody else uses during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_read_dirty(vf: *mut vfio_fast, dirty: *const vfio_fast_dirty) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: dirty is as this function's contract says.
        let dirty = unsafe { sized::read(dirty) }?;
        let range = convert::dirty_range(&dirty, handle.engine.page())?;
        // SAFETY: so is its bitmap.
        let bits = unsafe { array::words(dirty.bits, dirty.words, "struct vfio_fast_dirty: bits") }?;
        Ok(handle.engine.read_dirty(range, bits)?)
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Does what vfio_fast_unmap() does, and tells what vfio_fast_read_dirty() would have told of it. Not in a transaction: it
/// would be executed later.
///
/// - vf: the handle.
/// - dirty: the range, and the bitmap. If the call fails, the bits of what was unmapped all the same are set.
/// - unmapped: receives how many bytes were taken out of what was wanted. May be NULL. Written only on success.
///
/// # Returns
/// 0, or
/// - -EBUSY: a transaction is open
/// - every errno of vfio_fast_read_dirty(), and of vfio_fast_unmap() outside a transaction
///
/// # Threads
/// Any; waits for a running call on the same handle.
///
/// # Safety
/// As for vfio_fast_read_dirty(); unmapped is NULL or points to a uint64_t.
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
        // SAFETY: so is its bitmap.
        let bits = unsafe { array::words(dirty.bits, dirty.words, "struct vfio_fast_dirty: bits") }?;
        let bytes = handle.engine.unmap_dirty(range, bits)?;
        // SAFETY: unmapped is as this function's contract says.
        unsafe { out::write_optional(unmapped, bytes) };
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}
