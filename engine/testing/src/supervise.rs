//! System calls of some threads, each shown to the test before it is made, and made to fail if the test says so.
//!
//! A seccomp filter with a listener (SECCOMP_RET_USER_NOTIF) stops a thread at each call until a supervisor, which is
//! another thread of the process without the filter, has decided. Threads inherit the filter, whatever signals they
//! block. So the threads of the library are covered too, which Syscall User Dispatch would leave out.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use crate::seccomp::{self, NEW_LISTENER};

/// Calls that are neither shown nor made to fail. They cannot fail with valid arguments, or the C library and std end
/// the process or go on as if they had not failed, so that no caller sees an error:
///
/// - futex, sched_yield: waiting, which std does not expect to fail;
/// - rt_sigprocmask, rt_sigreturn, set_robust_list, rseq, set_tid_address, sigaltstack: the state of a thread, which
///   the C library sets when a thread starts. It ends the process if rseq fails;
/// - munmap: of stacks of threads and of arenas. Nothing that has failed could be released in another way, and glibc
///   ends the process;
/// - brk: malloc() takes memory by mmap, which is made to fail, where brk fails;
/// - close: Linux closes the descriptor whatever it returns;
/// - exit, exit_group: they do not return;
/// - gettid, getpid, clock_gettime: they cannot fail.
const LEFT_OUT: &[libc::c_long] = &[
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_munmap,
    libc::SYS_brk,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_clock_gettime,
];

/// `struct seccomp_notif`, with its `struct seccomp_data`: a call that waits for the supervisor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Call {
    id: u64,
    /// The thread that makes it.
    pub thread: u32,
    flags: u32,
    number: i32,
    architecture: u32,
    instruction: u64,
    pub arguments: [u64; 6],
}

impl Call {
    /// Its number, as in `libc::SYS_*`.
    pub fn number(&self) -> libc::c_long {
        libc::c_long::from(self.number)
    }
}

/// `struct seccomp_notif_resp`
#[repr(C)]
#[derive(Default)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
/// SECCOMP_USER_NOTIF_FLAG_CONTINUE: make the call.
const CONTINUE: u32 = 1;

const _: () = assert!(size_of::<Call>() == 80 && size_of::<Response>() == 24);

/// Runs `work` on a thread of its own. `decide` sees each system call of this thread and of those that it starts, but
/// for `LEFT_OUT`, and returns the errno that it fails with; `None`: it is made. Returns once all of these threads
/// have ended.
///
/// `decide` must not allocate: the thread that waits for it can hold a lock of malloc().
pub fn supervise<R: Send>(
    work: impl FnOnce() -> R + Send,
    mut decide: impl FnMut(&Call) -> Option<libc::c_int>,
) -> R {
    let listener = AtomicI32::new(-1);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let fd = seccomp::install(&seccomp::all_but(LEFT_OUT), NEW_LISTENER).unwrap();
            listener.store(fd, Ordering::Release);
            work()
        });
        // A channel would make calls that wait for this thread.
        while listener.load(Ordering::Acquire) < 0 {
            assert!(!worker.is_finished(), "no listener");
            thread::sleep(Duration::from_micros(20));
        }
        // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
        let listener = unsafe { OwnedFd::from_raw_fd(listener.load(Ordering::Acquire)) };
        while let Some(call) = receive(&listener) {
            let response = match decide(&call) {
                Some(errno) => Response { id: call.id, error: -errno, ..Response::default() },
                None => Response { id: call.id, flags: CONTINUE, ..Response::default() },
            };
            // SAFETY: the call reads one struct. It fails if the thread does not wait any more.
            let _ = unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw const response) };
        }
        worker.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// The next call; `None` if no thread has the filter any more.
fn receive(listener: &OwnedFd) -> Option<Call> {
    loop {
        let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the call reads and writes one pollfd.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
        if poll.revents & libc::POLLIN != 0 {
            let mut call = Call::default();
            // SAFETY: the call writes one struct, which has to be zero before.
            if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut call) } == 0 {
                return Some(call);
            }
        } else if poll.revents & libc::POLLHUP != 0 {
            return None;
        }
    }
}
