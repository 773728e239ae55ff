//! What is asked of this process.

#![allow(unsafe_code)] // calls the C library, and names the program's memory

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

use vfio_fast_engine::addr::HostVa;

use super::stack;

/// The program's memory at `address`, which it wants to be mapped for a device.
pub fn memory(address: u64) -> HostVa {
    // SAFETY: the program makes the map call, and answers for what it maps. Faulting it in changes no byte.
    unsafe { vfio_fast_engine::host_va(address) }
}

/// The bytes at `address`; `None` if not all of them can be read. It never faults, whatever the address is.
pub fn read(address: u64, buffer: &mut [u8]) -> Option<&[u8]> {
    // Most programs have their argument there, and the system call takes longer than many a map.
    if stack::read(address, buffer) {
        return Some(buffer);
    }
    match read_directly(address, buffer) {
        Ok(read) => read.then_some(buffer),
        // A kernel without CONFIG_CROSS_MEMORY_ATTACH, or a sandbox.
        Err(()) => read_through_a_pipe(address, buffer).then_some(buffer),
    }
}

/// The bytes at `address`, which the kernel has just written there, so that no system call is needed.
pub fn read_answer(address: u64, buffer: &mut [u8]) -> &[u8] {
    let from = address as *const u8;
    // SAFETY: the call of the program has succeeded, for which the kernel has read and written the bytes at its
    // argument. The program must not unmap its argument while it makes the call.
    unsafe { std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), buffer.len()) };
    buffer
}

/// Whether the bytes could be read; an error if this kernel cannot read so.
fn read_directly(address: u64, buffer: &mut [u8]) -> Result<bool, ()> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: buffer.len() };
    let process = std::process::id() as libc::pid_t;
    // SAFETY: the call writes to the buffer only, and checks the address itself.
    let read = unsafe { libc::process_vm_readv(process, &raw const local, 1, &raw const remote, 1, 0) };
    match usize::try_from(read) {
        Ok(read) => Ok(read == buffer.len()),
        Err(_) if errno() == libc::EFAULT => Ok(false),
        Err(_) => Err(()),
    }
}

/// The same by a pipe, which checks the address, too.
fn read_through_a_pipe(address: u64, buffer: &mut [u8]) -> bool {
    let Some((reader, writer)) = pipe() else { return false };
    let bytes = buffer.len();
    // SAFETY: the call checks the address. A pipe that is empty holds a page, so it does not wait.
    let written = unsafe { libc::write(writer.as_raw_fd(), address as *const libc::c_void, bytes) };
    if usize::try_from(written) != Ok(bytes) {
        return false;
    }
    // SAFETY: the buffer is writable for so many bytes, which are in the pipe.
    let read = unsafe { libc::read(reader.as_raw_fd(), buffer.as_mut_ptr().cast(), bytes) };
    usize::try_from(read) == Ok(bytes)
}

/// Both ends of a new pipe: the one to read from, and the one to write to.
fn pipe() -> Option<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: there is room for the two descriptors that the call writes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return None;
    }
    // SAFETY: the call has opened it, and nothing else owns it.
    let reader = unsafe { OwnedFd::from_raw_fd(ends[0]) };
    // SAFETY: likewise.
    let writer = unsafe { OwnedFd::from_raw_fd(ends[1]) };
    Some((reader, writer))
}

/// Whether this is the descriptor of a character device, as those of VFIO and iommufd are.
pub fn is_device(fd: c_int) -> bool {
    status(fd).is_some_and(|status| status.st_mode & libc::S_IFMT == libc::S_IFCHR)
}

fn status(fd: c_int) -> Option<libc::stat> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: there is room for what the call writes.
    if unsafe { libc::fstat(fd, status.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it has written it.
    Some(unsafe { status.assume_init() })
}

/// Whether there is memory for so many bytes now.
pub fn has_memory(bytes: usize) -> bool {
    let mut reserve: Vec<u8> = Vec::new();
    let reserved = reserve.try_reserve_exact(bytes).is_ok();
    // The compiler may not leave out what has no other effect.
    std::hint::black_box(&reserve);
    reserved
}

/// Runs `child` in every process that this one forks. `child` must not depend on other threads.
pub fn at_fork(child: fn()) {
    static CHILD: OnceLock<fn()> = OnceLock::new();
    unsafe extern "C" fn forked() {
        if let Some(child) = CHILD.get() {
            child();
        }
    }
    if CHILD.set(child).is_ok() {
        // SAFETY: the function may run in a forked process: it only stores numbers. If there is no memory for it, the
        // child counts its parent's calls as well.
        unsafe { libc::pthread_atfork(None, None, Some(forked)) };
    }
}

/// The file that was standard error when the program began.
static STANDARD_ERROR: OnceLock<Option<(libc::dev_t, libc::ino_t)>> = OnceLock::new();

fn standard_error() -> Option<(libc::dev_t, libc::ino_t)> {
    status(libc::STDERR_FILENO).map(|status| (status.st_dev, status.st_ino))
}

/// Remembers what standard error is.
pub fn keep_standard_error() {
    let _ = STANDARD_ERROR.set(standard_error());
}

/// Writes to standard error, unless the program has closed it: its descriptor may be that of anything by now.
pub fn write_standard_error(text: &str) {
    let now = standard_error();
    if now.is_none() || STANDARD_ERROR.get() != Some(&now) {
        return;
    }
    // SAFETY: the call reads the text. What cannot be written is lost, and nobody depends on it.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}

/// The calling thread's errno.
pub fn errno() -> c_int {
    // SAFETY: the function has no requirements.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: it returns the place of the thread's own errno.
    unsafe { *place }
}

/// Sets the calling thread's errno.
pub fn set_errno(value: c_int) {
    // SAFETY: the function has no requirements.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: it returns the place of the thread's own errno.
    unsafe { *place = value };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_where_there_is_some() {
        let value = 0x1234_5678u32.to_ne_bytes();
        let mut buffer = [0; 4];
        assert_eq!(read(value.as_ptr() as u64, &mut buffer), Some(&value[..]));
        buffer = [0; 4];
        assert!(read_through_a_pipe(value.as_ptr() as u64, &mut buffer));
        assert_eq!(buffer, value);
        for address in [0, 1, u64::MAX - 1, 1 << 62] {
            assert_eq!(read(address, &mut buffer), None, "{address:#x}");
            assert!(!read_through_a_pipe(address, &mut buffer), "{address:#x}");
        }
    }

    #[test]
    fn devices_are_told_from_files() {
        let open = |path| std::fs::File::open(path).unwrap();
        assert!(is_device(open("/dev/null").as_raw_fd()));
        assert!(!is_device(open("/proc/self/status").as_raw_fd()) && !is_device(-1));
    }

    #[test]
    fn memory_is_reserved_or_it_is_not() {
        assert!(has_memory(1 << 20) && !has_memory(1 << 62));
    }
}
