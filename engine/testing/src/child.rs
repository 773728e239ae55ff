//! Child processes that are forked, not started: they have the memory of the test.

use std::panic;

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    Exited(i32),
    /// By this signal; SIGALRM: it took longer than its limit.
    Killed(i32),
}

/// The exit status of a child in which any thread has panicked.
pub const PANICKED: i32 = 101;

/// A child that was started.
#[derive(Debug)]
pub struct Child(libc::pid_t);

/// Starts a child that runs `work`, and ends with the status that this returns. Only for a process with one thread: locks
/// of others would stay locked.
pub fn start(work: impl FnOnce() -> i32) -> Child {
    // SAFETY: the process has one thread, so the child may do whatever this process may.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{}", std::io::Error::last_os_error());
    if child > 0 {
        return Child(child);
    }
    // A thread of the library passes its panic on or not; none may panic.
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        tell(info);
        // SAFETY: the call does not return.
        unsafe { libc::_exit(PANICKED) }
    }));
    let status = work();
    // SAFETY: the call does not return. Nothing of the test is run a second time at exit.
    unsafe { libc::_exit(status) }
}

/// Starts a child, and waits until it has ended.
pub fn run(work: impl FnOnce() -> i32) -> Ended {
    start(work).wait()
}

/// Kills this process after so many seconds from now on, in place of the limit before: for one that hangs.
pub fn limit(seconds: u32) {
    // SAFETY: the call takes no pointer.
    unsafe { libc::alarm(seconds) };
}

impl Child {
    /// Waits until it has ended.
    pub fn wait(self) -> Ended {
        let mut status = 0;
        // SAFETY: the call writes one int.
        while unsafe { libc::waitpid(self.0, &raw mut status, 0) } != self.0 {}
        if libc::WIFEXITED(status) {
            Ended::Exited(libc::WEXITSTATUS(status))
        } else {
            Ended::Killed(libc::WTERMSIG(status))
        }
    }
}

/// From now on, what this process prints as an error goes nowhere, and it leaves no core file.
pub fn silence() {
    // SAFETY: the path ends with a zero.
    let nothing = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    // SAFETY: the call takes no pointer. std does not expect that its standard error is closed.
    assert!(nothing >= 0 && unsafe { libc::dup2(nothing, libc::STDERR_FILENO) } >= 0);
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct outlives the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) }, 0);
}

/// Zeroed memory for a value that this process and its children share. It is never unmapped.
///
/// # Safety
///
/// All bytes of a `T` may be zero, and it is changed through atomics only.
pub unsafe fn shared<T: Sync>() -> &'static T {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: without MAP_FIXED a mapping replaces nothing.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<T>(), protection, flags, -1, 0) };
    assert_ne!(memory, libc::MAP_FAILED);
    // SAFETY: the mapping is large enough, aligned to a page, zeroed, and never unmapped.
    unsafe { &*memory.cast::<T>() }
}
