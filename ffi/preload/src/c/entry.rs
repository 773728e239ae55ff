//! What the program and its loader call.

#![allow(unsafe_code)] // exports functions, and calls the one that they stand for

use std::ffi::{c_int, c_ulong, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Instant;

use vfio_fast_engine::Deferred;

use super::process::{errno, set_errno};
use crate::call;
use crate::request::Kind;

#[cfg(panic = "abort")]
compile_error!("a panic must not end the program that loaded this library: build it with panic=unwind");

/// Called by the loader before the program's main().
#[used]
#[unsafe(link_section = ".init_array")]
static LOADED: extern "C" fn() = loaded;

/// Called when the program returns from main() or calls exit(), after its own handlers.
#[used]
#[unsafe(link_section = ".fini_array")]
static UNLOADED: extern "C" fn() = unloaded;

extern "C" fn loaded() {
    guarded(call::loaded);
}

extern "C" fn unloaded() {
    guarded(call::unloaded);
}

/// ioctl(2), in place of the C library's, which has its third argument among `...`. The calling convention of x86-64
/// passes it in the same register.
///
/// # Safety
///
/// That of the ioctl.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    let Some(kind) = Kind::of(request) else {
        // SAFETY: this is the call of the program, which answers for it.
        return unsafe { next(fd, request, argument) };
    };
    let before = errno();
    let address = argument as u64;
    let mut mapped = 0;
    guarded(|| mapped = call::before(fd, kind, address));
    set_errno(before);
    let start = Instant::now();
    // SAFETY: as above.
    let answer = unsafe { next(fd, request, argument) };
    let took = start.elapsed();
    let after = errno();
    guarded(|| call::after(kind, address, mapped, (answer < 0).then_some(after), took));
    set_errno(after);
    answer
}

/// Runs `body`. Neither a panic nor a cancellation leaves it.
fn guarded(body: impl FnOnce()) {
    let _deferred = Deferred::begin();
    // AssertUnwindSafe: what a panic may leave behind are counters.
    if let Err(payload) = catch_unwind(AssertUnwindSafe(body)) {
        // Dropping it runs code that may panic again.
        std::mem::forget(payload);
        call::panicked();
    }
}

/// The ioctl() that the program would have called: the one of the next library that has one.
///
/// # Safety
///
/// That of the ioctl.
unsafe fn next(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    type Ioctl = unsafe extern "C" fn(c_int, c_ulong, ...) -> c_int;
    static NEXT: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
    let mut found = NEXT.load(Ordering::Relaxed);
    if found.is_null() {
        // SAFETY: the name is a string of C.
        found = unsafe { libc::dlsym(libc::RTLD_NEXT, c"ioctl".as_ptr()) };
        NEXT.store(found, Ordering::Relaxed);
    }
    if found.is_null() {
        // SAFETY: the caller answers for the call.
        return unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) } as c_int;
    }
    // SAFETY: a symbol of that name is the function that <sys/ioctl.h> declares.
    let next = unsafe { std::mem::transmute::<*mut c_void, Ioctl>(found) };
    // SAFETY: the caller answers for the call.
    unsafe { next(fd, request, argument) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_errnos_are_the_kernels() {
        for request in [0x3b71, 0x3b72, 0x3b85, 0x3b86, 0x3b8f, 0x3b64] {
            set_errno(libc::EXDEV);
            // SAFETY: no descriptor has this number, so nothing is accessed.
            assert_eq!(unsafe { ioctl(-1, request, null_mut()) }, -1);
            assert_eq!(errno(), libc::EBADF);
        }
    }

    #[test]
    fn a_panic_ends_here() {
        guarded(|| std::panic::resume_unwind(Box::new("enough")));
    }
}
