//! Every function C can call. Each is one call of `guard` or `guard_handle` (a test reads this file and says so); what
//! they promise is in their doc comments, which are the header's.

#![allow(unsafe_code)] // takes callers' pointers and exports symbols

pub mod dirty;

use std::ffi::{CStr, c_char, c_int};

use vfio_fast_engine::addr::Iova;
use vfio_fast_engine::region::Backing;
use vfio_fast_engine::{discard_range, host_va};

use crate::abi::{
    VFIO_FAST_ABI_VERSION, vfio_fast_config, vfio_fast_failure, vfio_fast_info, vfio_fast_memory,
    vfio_fast_outcome, vfio_fast_pages, vfio_fast_range, vfio_fast_region, vfio_fast_stats,
};
use crate::array;
use crate::convert;
use crate::failure::{self, Failure};
use crate::guard::{guard, guard_handle, guard_text};
use crate::handle::{Settings, vfio_fast};
use crate::log::refuse_inside;
use crate::sized::{self, Output};

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

/// Opens a transaction. Until vfio_fast_commit() or vfio_fast_abort(), vfio_fast_map_region() and vfio_fast_unmap() only
/// change what is wanted and answer errors of their arguments; nothing reaches the kernel. The transaction belongs to
/// the handle, not to the thread.
///
/// - vf: the handle.
///
/// # Returns
/// 0, or
/// - -EINVAL: vf is NULL
/// - -EBUSY: a transaction is open already
/// - -EDEADLK, -ENOTRECOVERABLE: see the top of this file
///
/// # Threads
/// Any; waits for a running call on the same handle.
///
/// # Safety
/// vf is NULL or came from vfio_fast_open() and is not closed before this call has returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_begin(vf: *mut vfio_fast) -> c_int {
    let body = |handle: &vfio_fast| Ok(handle.engine.begin()?);
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

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
        if !unmapped.is_null() {
            // SAFETY: unmapped is not NULL, so it points to one uint64_t of the caller, writable during this call.
            unsafe { unmapped.write(bytes) };
        }
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

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
        if !unmapped.is_null() {
            // SAFETY: unmapped is not NULL, so it points to one uint64_t of the caller, writable during this call.
            unsafe { unmapped.write(bytes) };
        }
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Makes the kernel hold what is wanted: checks the limits, faults memory in, unmaps, maps, and leaves alone what is
/// right already. When it has returned 0, no device can reach memory that is not wanted.
///
/// If it fails, everything the transaction added is taken back and is no longer wanted, what the transaction unmapped
/// stays unmapped, what was wanted before and was not unmapped stays mapped; the errno is that of the first failure.
/// The transaction is closed either way, unless outcome itself was refused (-EINVAL, -E2BIG): then nothing was done and
/// it is still open. If taking back fails too, the handle is poisoned.
///
/// A device region that cannot be mapped is no failure: outcome tells, and a message at VFIO_FAST_LOG_WARN.
///
/// - vf: the handle.
/// - outcome: receives what was done. May be NULL. Written only on success.
///
/// # Returns
/// 0, or
/// - -EINVAL: vf is NULL; no transaction is open; outcome is too short; RAM lies outside the device addresses the IOMMU
///   can translate
/// - -E2BIG: outcome is too long (the size rule)
/// - -ENOMEM: the locked-memory limit does not suffice; vfio_fast_last_error() names what is needed, what is allowed and
///   what to raise; or the kernel ran out of memory
/// - -ENOSPC: the IOMMU has too few entries left (dma_avail)
/// - -EIO: the kernel unmapped another number of bytes than were mapped: somebody else changed the container
/// - another errno the kernel's map or unmap call gave, such as -EFAULT
/// - -EDEADLK, -ENOTRECOVERABLE: see the top of this file
///
/// # Threads
/// Any; waits for a running call on the same handle. It may start threads that end before it returns; they block all
/// signals.
///
/// # Safety
/// vf as for vfio_fast_begin(); outcome is NULL or points to as many bytes as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_commit(vf: *mut vfio_fast, outcome: *mut vfio_fast_outcome) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: outcome is as this function's contract says, and only this call uses it until it returns.
        let output = unsafe { Output::optional(outcome) }?;
        let outcome = handle.engine.commit()?;
        if let Some(output) = output {
            output.write(&convert::outcome(&outcome));
        }
        Ok(())
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Forgets the open transaction: what is wanted is what was wanted before vfio_fast_begin(). The kernel is not called.
///
/// - vf: the handle.
///
/// # Returns
/// 0, or
/// - -EINVAL: vf is NULL; no transaction is open
/// - -EDEADLK, -ENOTRECOVERABLE: see the top of this file
///
/// # Threads
/// Any; waits for a running call on the same handle.
///
/// # Safety
/// vf as for vfio_fast_begin().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_abort(vf: *mut vfio_fast) -> c_int {
    let body = |handle: &vfio_fast| Ok(handle.engine.abort()?);
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

/// Gives memory that no device reaches any more back to the system, on as many threads as a commit uses: what it held is
/// lost. It stays mapped in this process, and is empty. For a program that ends, or that is done with a guest: the system
/// frees memory on one thread.
///
/// - vf: a handle.
/// - memory: what to give back. Only read during the call.
///
/// # Returns
/// 0, or
/// - -EINVAL: a pointer is NULL; the struct is too short; hva or length is not a multiple of the system's page; length is
///   0; the memory reaches past the end of the address space; or the kernel does not take such memory back (locked
///   memory, a part of a huge page, a file that has none of it)
/// - -E2BIG: the struct is too long (the size rule)
/// - -EOPNOTSUPP: unknown flags; or the file cannot give a part of it back
/// - -EBUSY: a part of the memory is wanted or mapped through this handle, at this host address. What other handles map, or
///   this one at another host address of the same memory, is not seen
/// - -ENOMEM: a part of the range is not mapped in this process
/// - another errno the kernel gave. After any but those of arguments and -EBUSY, a part of the memory may be empty
/// - -EDEADLK, -ENOTRECOVERABLE: see the top of this file
///
/// # Threads
/// Any; waits for a running call on the same handle. It may start threads that end before it returns; they block all
/// signals.
///
/// # Safety
/// vf as for vfio_fast_begin(); memory is NULL or points to as many bytes as its size says. Nothing needs what the memory
/// it names holds, and nothing else is mapped there meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_discard(vf: *mut vfio_fast, memory: *const vfio_fast_memory) -> c_int {
    let body = |handle: &vfio_fast| {
        // SAFETY: memory is as this function's contract says.
        let memory = unsafe { sized::read(memory) }?;
        let mode = convert::discard_mode(&memory)?;
        // SAFETY: this function's contract says of the memory what discard_range() demands.
        let range = unsafe { discard_range(memory.hva, memory.length, mode) };
        let range = range.ok_or_else(|| convert::no_pages(&memory))?;
        Ok(handle.engine.discard(&range)?)
    };
    // SAFETY: vf is as this function's contract says.
    unsafe { guard_handle(vf, body) }
}

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

/// Tells the last failure on the calling thread, in numbers. A call that succeeds does not change it.
///
/// - failure: receives it; error is 0 if no call of this thread has failed yet. Written only on success.
///
/// # Returns
/// 0, or (and this then is the last failure)
/// - -EINVAL: failure is NULL; the struct is too short
/// - -E2BIG: the struct is too long (the size rule)
///
/// # Threads
/// Any; each thread has its own.
///
/// # Safety
/// failure is NULL or points to as many bytes as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfio_fast_last_failure(failure: *mut vfio_fast_failure) -> c_int {
    guard(|| {
        // SAFETY: failure is as this function's contract says, and only this call uses it until it returns.
        let output = unsafe { Output::new(failure) }?;
        output.write(&failure::last_failure());
        Ok(())
    })
}

/// Tells the last failure on the calling thread, in words for people: what failed, what was needed, what there was, and
/// what to change. A call that succeeds does not change it. The text may change in any release; programs read
/// vfio_fast_last_failure().
///
/// # Returns
/// The text, never NULL, empty if no call of this thread has failed yet. It is the library's, and valid until the next
/// call of this thread into the library.
///
/// # Threads
/// Any; each thread has its own.
#[unsafe(no_mangle)]
pub extern "C" fn vfio_fast_last_error() -> *const c_char {
    guard_text(failure::last_text)
}

/// Tells the version of the library that was loaded, as "MAJOR.MINOR.PATCH".
///
/// # Returns
/// The text, never NULL, valid as long as the library is loaded.
///
/// # Threads
/// Any.
#[unsafe(no_mangle)]
pub extern "C" fn vfio_fast_version() -> *const c_char {
    VERSION.as_ptr()
}

/// Tells the version of the binary interface of the library that was loaded; compare it with VFIO_FAST_ABI_VERSION.
///
/// # Returns
/// The number.
///
/// # Threads
/// Any.
#[unsafe(no_mangle)]
pub extern "C" fn vfio_fast_abi_version() -> u32 {
    VFIO_FAST_ABI_VERSION
}

/// Cargo's version, as C text.
const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(text) => text,
    Err(_) => panic!("a version has no NUL"),
};
