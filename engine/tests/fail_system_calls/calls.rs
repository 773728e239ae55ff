//! Which system call of a run fails, and how.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, Ordering};

use common::supervise::Call;
use vfio_fast_engine::Errno;
use vfio_fast_testing as common;

/// What the runs tell this process.
pub struct Told {
    /// System calls of the run while they were counted.
    pub calls: AtomicU64,
    /// The call that failed, plus 1; 0: none has.
    pub failed: AtomicI64,
    pub errno: AtomicI32,
    /// The file of [`FILES`] that could not be opened when it was opened first, as a bit.
    pub lost: AtomicU64,
    /// The number of runs since the last one in which a call failed.
    pub quiet: AtomicU64,
    /// Runs of the process, and whether there is no further one.
    pub runs: AtomicU64,
    pub is_over: AtomicBool,
    /// The calls that have failed in any run of the scenario.
    pub covered: Numbers,
    /// The calls that were counted in any run of it.
    pub seen: Numbers,
}

/// A set of numbers of system calls, as bits.
pub type Numbers = [AtomicU64; 16];

pub fn set(numbers: &Numbers, number: libc::c_long) {
    numbers[number as usize / 64].fetch_or(1 << (number % 64), Ordering::Relaxed);
}

pub fn members(numbers: &Numbers) -> Vec<libc::c_long> {
    let has = |number: &libc::c_long| {
        numbers[*number as usize / 64].load(Ordering::Relaxed) >> (number % 64) & 1 == 1
    };
    (0..1024).filter(has).collect()
}

pub static TOLD: OnceLock<&Told> = OnceLock::new();
/// Whether calls are counted: the library works, and not the test.
pub static ARMED: AtomicBool = AtomicBool::new(false);
/// Whether there is no /proc/zoneinfo, which makes the library fault memory in by pins.
pub static HIDES_ZONES: AtomicBool = AtomicBool::new(false);

/// Whether this process remembers what has failed: files that may not be opened, or that there is a timeline.
pub static REMEMBERS: AtomicBool = AtomicBool::new(false);

/// Files whose loss is logged.
pub const FILES: [&CStr; 3] = [c"/proc/self/pagemap", c"/proc/self/maps", c"/proc/self/smaps"];

pub fn told() -> &'static Told {
    TOLD.get().expect("set before the first run")
}

/// The errnos that calls can fail with; the first one of a cause that can last. Sandboxes return EPERM.
pub const ERRNOS: &[(&[libc::c_long], &[c_int])] = &[
    (&[libc::SYS_read, libc::SYS_pread64], &[libc::EIO, libc::EINTR]),
    (&[libc::SYS_write, libc::SYS_writev], &[libc::ENOSPC, libc::EINTR, libc::EIO]),
    (&[libc::SYS_openat], &[libc::EMFILE, libc::EACCES, libc::EINTR, libc::ENOMEM]),
    (&[libc::SYS_madvise], &[libc::ENOMEM, libc::EAGAIN, libc::EPERM, libc::EINTR, libc::EFAULT]),
    (&[libc::SYS_mmap], &[libc::ENOMEM, libc::EAGAIN]),
    (&[libc::SYS_mprotect], &[libc::ENOMEM, libc::EACCES]),
    (&[libc::SYS_clone, libc::SYS_clone3], &[libc::EAGAIN, libc::EPERM, libc::ENOMEM]),
    (&[libc::SYS_eventfd2], &[libc::EMFILE, libc::ENOMEM, libc::EPERM]),
    (&[libc::SYS_ioctl], &[libc::ENOMEM, libc::ENOTTY, libc::EINTR, libc::EPERM]),
    (&[libc::SYS_fcntl], &[libc::EMFILE, libc::EPERM]),
    (&[libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx], &[libc::ENOMEM, libc::EACCES]),
    (&[libc::SYS_io_uring_setup, libc::SYS_io_uring_register], &[libc::ENOMEM, libc::EPERM, libc::EINTR]),
];

/// Calls of malloc(). If they fail from then on, no memory can be allocated: see fail_allocations.rs.
pub const IS_MEMORY: &[libc::c_long] = &[libc::SYS_mmap, libc::SYS_mprotect];

/// The errnos that a call with this number can fail with.
pub fn errnos_of(number: libc::c_long) -> &'static [c_int] {
    let known = ERRNOS.iter().find(|(numbers, _)| numbers.contains(&number));
    known.map_or(&[libc::EPERM, libc::ENOMEM], |(_, errnos)| errnos)
}

/// The errnos that this call can fail with.
pub fn errnos(call: &Call) -> &'static [c_int] {
    let [fd, _, bytes, ..] = call.arguments;
    match call.number() {
        // Those of an event cannot fail: it is read and written without waiting, 8 bytes at a time.
        libc::SYS_read | libc::SYS_write if bytes == 8 => &[],
        // What the test prints, and waits for.
        libc::SYS_write if fd == 2 => &[],
        libc::SYS_ppoll => &[],
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll => &[],
        number => errnos_of(number),
    }
}

/// Which calls of a run fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The one with this number in the run, counted from 0, with one of its errnos.
    Once(u64),
    /// All with this number of a system call, with this one of its errnos.
    Always(libc::c_long, c_int),
}

/// Decides about a call. Allocates nothing.
pub fn decide(
    mode: Mode,
    only: &[libc::c_long],
    opened: &mut [bool; FILES.len()],
    call: &Call,
) -> Option<c_int> {
    let (told, number) = (told(), call.number());
    let path = (number == libc::SYS_openat).then(|| {
        let path = std::ptr::with_exposed_provenance::<c_char>(call.arguments[1] as usize);
        // SAFETY: the thread waits for the answer, and its path is valid until then.
        unsafe { CStr::from_ptr(path) }
    });
    if HIDES_ZONES.load(Ordering::Relaxed) && path == Some(c"/proc/zoneinfo") {
        return Some(libc::ENOENT);
    }
    let file = FILES.iter().position(|file| Some(*file) == path);
    let first = file.is_some_and(|file| !std::mem::replace(&mut opened[file], true));
    let errnos = errnos(call);
    let counts = ARMED.load(Ordering::Relaxed) && (only.is_empty() || only.contains(&number));
    if !counts || errnos.is_empty() {
        return None;
    }
    set(&told.seen, number);
    let nth = told.calls.fetch_add(1, Ordering::Relaxed);
    let errno = match mode {
        Mode::Once(which) if nth == which => errnos[which as usize % errnos.len()],
        Mode::Always(which, errno) if number == which => errno,
        _ => return None,
    };
    REMEMBERS.fetch_or(path.is_some() && [libc::EACCES, libc::EPERM].contains(&errno), Ordering::Relaxed);
    told.failed.store(number + 1, Ordering::Relaxed);
    told.errno.store(errno, Ordering::Relaxed);
    set(&told.covered, number);
    // std opens again after EINTR.
    if let Some(file) = file.filter(|_| first && errno != libc::EINTR) {
        told.lost.fetch_or(1 << file, Ordering::Relaxed);
    }
    Some(errno)
}

/// The call that has failed, with its errno.
pub fn failed() -> Option<(libc::c_long, Errno)> {
    let number = told().failed.load(Ordering::Relaxed) - 1;
    (number >= 0).then(|| (number, Errno(told().errno.load(Ordering::Relaxed))))
}

pub fn has_failed(numbers: &[libc::c_long]) -> bool {
    failed().is_some_and(|(number, _)| numbers.contains(&number))
}

/// Makes the system calls of `work` count.
pub fn armed<R>(work: impl FnOnce() -> R) -> R {
    ARMED.store(true, Ordering::Relaxed);
    let done = work();
    ARMED.store(false, Ordering::Relaxed);
    done
}
