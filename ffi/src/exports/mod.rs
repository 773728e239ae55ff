//! Every function that C can call. Each is one call of `guard`, `guard_handle` or `guard_text`, which a test checks by
//! reading these files. The doc comments are copied into the header.

#![allow(unsafe_code)] // takes callers' pointers and exports symbols

// In the order of the header. The blank lines keep rustfmt from sorting them.
pub mod region;

pub mod pages;

pub mod transaction;

pub mod background;

pub mod remap;
pub mod retry;

pub mod dirty;

pub mod handover;

pub mod discard;

pub mod report;

pub mod failure;

pub mod version;

use std::ffi::c_int;

use crate::abi::vfio_fast_config;
use crate::failure::Failure;
use crate::guard::guard;
use crate::handle::{Settings, vfio_fast};
use crate::log::refuse_inside;

/// Opens a handle on a container in which nothing is mapped yet. Starts no thread.
///
/// - config: how to open it; read only during the call
/// - out: receives the handle. Close it with vfio_fast_close().
///
/// # Returns
/// 0, or
/// - -EINVAL: config or out is NULL; a struct is too short; entry_size is not a power of two or is below 2 MiB; cuts
///   is NULL or misaligned, or a cut is not a multiple of the smallest IOMMU page; cpu_set contains no CPU; sim is set
///   and the backend is not VFIO_FAST_BACKEND_SIM; the container has no IOMMU type
/// - -E2BIG: a struct is too long
/// - -EOPNOTSUPP: unknown backend, flags or log_level; a reserved field is not 0
/// - -ENOENT: the iommufd has no IOAS with this ioas_id
/// - -EBADF, -ENOTTY, -EMFILE or another errno from the kernel: container_fd or iommufd_fd is not open, is not what
///   the backend needs, or cannot be duplicated
///
/// # Threads
/// Any thread.
///
/// # Safety
/// See Pointers; out points to a pointer. Until vfio_fast_close() has returned, config->log may be called with
/// log_opaque on any thread that calls into the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_open(config: *const vfio_fast_config, out: *mut *mut vfio_fast) -> c_int {
    guard(|| {
        // SAFETY: config, what it points to, and its log function are as this function's contract says; its descriptors are
        // the caller's own until this call returns, as the struct says.
        let settings = unsafe { Settings::read(config) }?;
        if out.is_null() {
            return Err(Failure::null("the new handle"));
        }
        let handle = Box::into_raw(Box::new(vfio_fast::open(settings)?));
        // SAFETY: out is not NULL, so it points to one pointer of the caller, writable during this call.
        unsafe { out.write(handle) };
        Ok(())
    })
}

/// Closes a handle: unmaps everything that is still mapped, frees the handle and sets *vf to NULL.
///
/// An open transaction is discarded. Closing a poisoned handle unmaps everything in its container. The handle is gone
/// even if the call fails, except with -EDEADLK.
///
/// Close the handle before the last group leaves a type1 container, or after: the kernel then unmaps everything when the
/// group leaves, and this call returns 0. In between, calls that map or unmap fail with -EINVAL. With iommufd, the last
/// device may be detached before or after.
///
/// - vf: points to the handle. NULL, or a pointer to NULL, is allowed and has no effect.
///
/// # Returns
/// 0, or
/// - a negative errno, that of the first unmap call that failed: the handle is gone, but a device may still access
///   memory until the container itself is closed. vfio_fast_last_error() names what is still mapped.
/// - -ENOTRECOVERABLE: a bug in the library, with the same consequences
/// - -EDEADLK: called from a log function; nothing was done
///
/// # Threads
/// Any thread, but no other call on the handle may be running or follow.
///
/// # Safety
/// vf is NULL or points to a pointer that is NULL or a handle that is not closed yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_close(vf: *mut *mut vfio_fast) -> c_int {
    guard(|| {
        if vf.is_null() {
            return Ok(());
        }
        refuse_inside()?;
        // SAFETY: vf is not NULL, so it points to one pointer of the caller, writable during this call.
        let handle = unsafe { vf.replace(std::ptr::null_mut()) };
        if handle.is_null() {
            return Ok(());
        }
        // SAFETY: it came from the Box that vfio_fast_open() leaked; the caller's pointer to it is gone, and by this
        // function's contract no other call uses it.
        let handle = unsafe { Box::from_raw(handle) };
        handle.close()
    })
}
