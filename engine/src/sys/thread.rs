//! Worker threads that exist for one task and receive no signals.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use super::cpu::CpuSet;
use super::placement::Placement;
use crate::error::Errno;
use crate::sync::thread as sync;

/// Bytes of stack per worker. In a program that locks all its future memory, every byte of it is locked. A worker's
/// deepest call is a read of /proc.
const STACK: usize = 256 * 1024;

/// What the kernel or a sandbox refused to the workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Refused {
    /// Workers that could not be started.
    pub not_started: usize,
    /// Workers that stayed on the CPUs of the calling thread.
    pub not_moved: usize,
}

/// Runs `body` on the calling thread while up to `extra` workers run `work`, and waits until all of them have ended.
/// Returns the result of `body`, and what was refused.
///
/// `body` must not depend on the workers. They run on `cpus` or, by default, on those of the process, and receive no
/// signals; see [`Placement`]. All of them have ended when this returns; a panic in one of them is propagated.
pub fn run<R>(
    extra: usize,
    cpus: Option<&CpuSet>,
    work: impl Fn() + Sync,
    body: impl FnOnce() -> R,
) -> (R, Refused) {
    let mut not_started = 0;
    let not_moved = AtomicUsize::new(0);
    let gate = Gate::default();
    let placement = (extra > 0).then(|| Placement::of_workers(cpus));
    let answer = thread::scope(|scope| {
        let mut workers = Vec::new();
        if let Some(placement) = &placement {
            // A new thread inherits the signal mask, so the signals are blocked from its first instruction.
            let blocked = SignalsBlocked::all();
            for number in 1..=extra {
                let worker = || {
                    if placement.enter().is_err() {
                        not_moved.fetch_add(1, Ordering::Relaxed);
                    }
                    gate.pass();
                    work();
                };
                let builder = thread::Builder::new().name(format!("vfio-fast-{number}")).stack_size(STACK);
                match blocked.as_ref().map(|_| builder.spawn_scoped(scope, worker)) {
                    Ok(Ok(handle)) => workers.push(handle),
                    // The next one would be refused, too: the cause is a sandbox or RLIMIT_NPROC.
                    Ok(Err(_)) | Err(_) => {
                        not_started = extra - workers.len();
                        break;
                    }
                }
            }
            drop(blocked);
            gate.open(workers.len());
        }
        let answer = body();
        for worker in workers {
            // The scope only waits for the end of the closure; this waits for the end of the thread.
            if let Err(panic) = worker.join() {
                resume_unwind(panic);
            }
        }
        answer
    });
    (answer, Refused { not_started, not_moved: not_moved.into_inner() })
}

/// Starts a thread that outlives the call, with the placement and the signal mask of a worker.
pub fn spawn(
    name: &str,
    cpus: Option<&CpuSet>,
    work: impl FnOnce() + Send + 'static,
) -> Result<sync::JoinHandle<()>, Errno> {
    #[cfg(vfio_fast_interleavings)]
    if crate::sync::NO_THREADS.get() {
        return Err(Errno(libc::EAGAIN));
    }
    let placement = Placement::of_workers(cpus);
    let blocked = SignalsBlocked::all()?;
    let body = move || {
        // What is refused only makes the work slower.
        let _ = placement.enter();
        work();
    };
    let started = sync::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body);
    drop(blocked);
    started.map_err(|error| error.raw_os_error().map_or(Errno::ENOMEM, Errno))
}

/// Keeps threads from working until all of them have started.
///
/// A new thread's stack is an mmap, and so are, after it has started, its heap and its signal stack. An mmap has to wait
/// for page faults in progress. A thread that worked at once would keep the others from starting until it has faulted
/// in a chunk, or a whole page of 1 GiB.
#[derive(Default)]
struct Gate {
    /// How many threads have started, and whether they may work.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Gate {
    /// Waits until the gate is open.
    fn pass(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 += 1;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, open)| !*open).unwrap_or_else(PoisonError::into_inner));
    }

    /// Opens the gate after `threads` threads have reached it.
    fn open(&self, threads: usize) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self
            .changed
            .wait_while(state, |(here, _)| *here < threads)
            .unwrap_or_else(PoisonError::into_inner);
        state.1 = true;
        self.changed.notify_all();
    }
}

/// Runs `body`. If it panics, runs `cleanup` before the panic continues.
pub fn on_panic<R>(cleanup: impl FnOnce(), body: impl FnOnce() -> R) -> R {
    struct Guard<C: FnOnce()>(Option<C>);
    impl<C: FnOnce()> Drop for Guard<C> {
        fn drop(&mut self) {
            if let Some(cleanup) = self.0.take() {
                cleanup();
            }
        }
    }
    let mut guard = Guard(Some(cleanup));
    let answer = body();
    guard.0 = None;
    answer
}

/// Blocks all signals in the calling thread until dropped.
struct SignalsBlocked {
    before: libc::sigset_t,
    /// The mask belongs to the thread that created this, so the same thread has to drop it.
    not_send: PhantomData<*const ()>,
}

impl SignalsBlocked {
    fn all() -> Result<Self, Errno> {
        let mut every = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `every` is writable for one sigset_t.
        unsafe { libc::sigfillset(every.as_mut_ptr()) };
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `every` was filled above and is only read, `before` is writable for one sigset_t.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, every.as_ptr(), before.as_mut_ptr()) };
        if error != 0 {
            return Err(Errno(error));
        }
        // SAFETY: the call succeeded, so it has written the previous mask.
        Ok(Self { before: unsafe { before.assume_init() }, not_send: PhantomData })
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: `before` is a mask the kernel gave us and is only read; a null old-mask pointer asks for nothing.
        // The call can only fail for an invalid first argument, and this one is a constant.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;

    use super::*;

    /// A field of the calling thread's /proc status.
    fn own_status(field: &str) -> String {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        status.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().to_owned()
    }

    #[test]
    fn workers_have_names_and_take_no_signals() {
        let caller = own_status("Name:");
        let mask = own_status("SigBlk:");
        let seen = Mutex::new(Vec::new());
        // All threads wait for each other; otherwise one could do everything while the others start.
        let all_there = Barrier::new(4);
        let look = || {
            all_there.wait();
            seen.lock().unwrap().push((own_status("Name:"), own_status("SigBlk:")));
        };
        assert_eq!(run(3, None, look, look), ((), Refused::default()));
        let mut seen = seen.into_inner().unwrap();
        seen.sort();
        let own = seen.iter().position(|(name, _)| *name == caller).expect("the calling thread works too");
        assert_eq!(seen.remove(own).1, mask, "the calling thread works with its own mask");
        assert_eq!(own_status("SigBlk:"), mask);
        // All 64 except SIGKILL (9), SIGSTOP (19) and those that the C library reserves (32, 33, musl also 34): bit n
        // is signal n+1.
        let reserved = if cfg!(target_env = "musl") { 0b111 } else { 0b11 };
        let every = format!("{:016x}", !(1u64 << 8 | 1 << 18 | reserved << 31));
        for (number, (name, blocked)) in (1..).zip(&seen) {
            assert_eq!((name, blocked), (&format!("vfio-fast-{number}"), &every));
        }
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn cleanup_runs_only_on_a_panic() {
        let mut cleaned = false;
        assert_eq!(on_panic(|| cleaned = true, || 7), 7);
        assert!(!cleaned);
        let panic = catch_unwind(AssertUnwindSafe(|| on_panic(|| cleaned = true, || panic!("body down"))));
        assert_eq!((panic.unwrap_err().downcast_ref(), cleaned), (Some(&"body down"), true));
    }

    #[test]
    fn alone_is_alone() {
        let caller = thread::current().id();
        let runs = Mutex::new(Vec::new());
        let note = || runs.lock().unwrap().push(thread::current().id());
        assert_eq!(run(0, None, note, note), ((), Refused::default()));
        assert_eq!(runs.into_inner().unwrap(), [caller]);
    }

    #[test]
    fn a_panicking_worker_is_not_lost() {
        let mask = own_status("SigBlk:");
        let panic = catch_unwind(|| run(2, None, || panic!("worker down"), || ())).unwrap_err();
        assert!(panic.downcast::<&str>().unwrap().contains("worker down"));
        assert_eq!(own_status("SigBlk:"), mask);
    }
}
