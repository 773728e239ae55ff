//! The primitives in which calls and the job wait for each other: those of the standard library, or those of a checker
//! that runs all interleavings of a test one after the other (`engine/tests/interleavings.rs`).

#[cfg(not(vfio_fast_interleavings))]
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError, atomic},
    thread,
};

#[cfg(vfio_fast_interleavings)]
pub(crate) use shuttle::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError, atomic},
    thread,
};

#[cfg(vfio_fast_interleavings)]
std::thread_local! {
    /// Makes every start of a job's thread fail, as a sandbox does. The checker runs all threads of a test on one.
    pub static NO_THREADS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}
