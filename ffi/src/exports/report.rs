//! Statistics and properties of a handle.

use std::ffi::c_int;

use crate::abi::{vfio_fast_info, vfio_fast_stats};
use crate::convert;
use crate::guard::guard_handle;
use crate::handle::vfio_fast;
use crate::sized::Output;

/// Tells what was done since open. Works on a poisoned handle.
///
/// - vf: the handle.
/// - stats: receives the totals. Written only on success.
///
/// # Returns
/// 0, or
/// - -EINVAL: a pointer is NULL; the struct is too short
/// - -E2BIG: the struct is too long (the size rule)
/// - -EDEADLK: see the top of this file
///
/// # Threads
/// Any; never waits. While a commit runs, what it does may be counted in part.
///
/// # Safety
/// vf as for vfio_fast_begin(); stats is NULL or points to as many bytes as its size says.
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

/// Tells what the handle is and what its IOMMU can do. Works on a poisoned handle.
///
/// - vf: the handle.
/// - info: receives it. Written only on success.
///
/// # Returns
/// 0, or
/// - -EINVAL: a pointer is NULL; the struct is too short
/// - -E2BIG: the struct is too long (the size rule)
/// - -EDEADLK: see the top of this file
///
/// # Threads
/// Any; waits for a running call on the same handle.
///
/// # Safety
/// vf as for vfio_fast_begin(); info is NULL or points to as many bytes as its size says.
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
