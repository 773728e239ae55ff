//! Statistics and properties of a handle.

use std::ffi::c_int;

use crate::abi::{vfio_fast_info, vfio_fast_stats};
use crate::convert;
use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::sized::Output;

/// Returns the statistics of a handle. Works on a poisoned handle.
///
/// - vf: the handle
/// - stats: receives the statistics
///
/// # Returns
/// 0, or a common error
///
/// # Threads
/// Any thread; never waits. While a commit is running, it may be counted in part.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_get_stats(vf: *mut vfio_fast, stats: *mut vfio_fast_stats) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: stats is as this function's contract says, and only this call uses it until it returns.
        let output = unsafe { Output::new(stats) }?;
        output.write(&convert::stats(&handle.engine.stats()));
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Returns the state of a handle and the properties of its IOMMU. Works on a poisoned handle.
///
/// An example: whether ram_bytes from iova on can be mapped.
///
/// ```c
/// struct vfio_fast_info info = {.size = sizeof(info)};
/// int fits = 0;
/// if (vfio_fast_get_info(vf, &info) == 0) {
///     fits = info.iova_ranges == 0;              // not reported: the kernel decides
///     for (uint64_t i = 0; i < info.iova_ranges && i < VFIO_FAST_IOVA_LIST; i++) {
///         const struct vfio_fast_iova_range *range = &info.iova_list[i];
///         fits |= range->first <= iova && iova + (ram_bytes - 1) <= range->last;
///     }
/// }
/// ```
///
/// - vf: the handle
/// - info: receives the properties
///
/// # Returns
/// 0, or a common error
///
/// # Threads
/// Any thread; waits for other calls on the same handle.
///
/// # Safety
/// See Pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_get_info(vf: *mut vfio_fast, info: *mut vfio_fast_info) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: info is as this function's contract says, and only this call uses it until it returns.
        let output = unsafe { Output::new(info) }?;
        output.write(&convert::info(&handle.engine.info(), handle.backend));
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}
