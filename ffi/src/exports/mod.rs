//! Every function that C can call. Each is one call of `guard`, `guard_handle` or `guard_text`, which a test checks by
//! reading these files. The doc comments are copied into the header.

#![allow(unsafe_code)] // takes callers' pointers and exports symbols

// In the order of the header. The blank lines keep rustfmt from sorting them.
pub mod region;

pub mod pages;

pub mod transaction;

pub mod dirty;

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

/// Opens a handle on a container in which nothing is mapped yet. No thread is started.
///
/// - config: what to open. Only read during the call.
/// - out: receives the handle, to be given back with vfio_fast_close(). Written only on success.
///
/// # Returns
/// 0, or
/// - -EINVAL: config or out is NULL; a struct is too short; entry_size is no power of two or below 2 MiB; sim is set for
///   a backend that has none; the container has no IOMMU type set
/// - -E2BIG: a struct is too long (the size rule)
/// - -EOPNOTSUPP: unknown backend, flags or log_level
/// - -ENOENT: the iommufd has no IOAS with ioas_id
/// - -EBADF, -ENOTTY, -EMFILE or another errno the kernel gave: container_fd or iommufd_fd is not open, is not what the
///   backend needs, or cannot be duplicated
///
/// # Threads
/// Any.
///
/// # Safety
/// config and config->sim are NULL or point to as many bytes as the sizes in them say; out is NULL or points to a pointer.
/// Until vfio_fast_close() has returned, config->log can be called with log_opaque on any thread that calls into the
/// handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_open(config: *const vfio_fast_config, out: *mut *mut vfio_fast) -> c_int {
    guard(|| {
        // SAFETY: config, its sim and its log function are as this function's contract says.
        let settings = unsafe { Settings::read(config) }?;
        if out.is_null() {
            return Err(Failure::null("what receives the handle"));
        }
        let handle = Box::into_raw(Box::new(vfio_fast::open(settings)?));
        // SAFETY: out is not NULL, so it points to one pointer of the caller, writable during this call.
        unsafe { out.write(handle) };
        Ok(())
    })
}

/// Closes a handle: unmaps whatever is still mapped, frees the handle and sets *vf to NULL, in every case but the one of
/// -EDEADLK. An open transaction is forgotten. A poisoned handle unmaps everything in its container.
///
/// - vf: the handle. NULL and a pointer to NULL are allowed and do nothing.
///
/// # Returns
/// 0, or
/// - a negative errno of the first unmap call that failed: the handle is gone all the same, but a device may still
///   reach memory until the container itself is closed
/// - -ENOTRECOVERABLE: a bug in the library; the same holds
/// - -EDEADLK: called from a log function; nothing was done
///
/// # Threads
/// Any, but no other call on this handle may be running or follow.
///
/// # Safety
/// vf is NULL or points to a pointer that is NULL or came from vfio_fast_open() and was not closed.
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
