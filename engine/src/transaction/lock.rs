//! The lock of an engine's state: who may read it, who may change it, and who waits.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use super::{Engine, Phase, State};
use crate::addr::IovaRange;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::log::Level;
use crate::sync::{MutexGuard, PoisonError, thread};
use crate::sys::thread::on_panic;

/// The locked state. A commit gives the lock up while it faults memory in and maps it.
pub(super) struct Locked<'a> {
    engine: &'a Engine,
    /// `None` only inside [`Locked::unlocked`].
    guard: Option<MutexGuard<'a, State>>,
}

const NOT_LOCKED: &str = "the state is used only while it is locked";

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        self.guard.as_ref().expect(NOT_LOCKED)
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.guard.as_mut().expect(NOT_LOCKED)
    }
}

impl State {
    /// An error if it is poisoned or closed.
    pub(super) fn usable(&self) -> Result<()> {
        if self.closed {
            let cause = "it is closed".to_owned();
            return Err(Error::check(Errno::ENOTRECOVERABLE, ErrorKind::Poisoned { cause }));
        }
        self.poisoned()
    }

    /// An error if its entries are handed over to another process.
    pub(super) fn not_suspended(&self) -> Result<()> {
        if self.suspended { Err(Error::check(Errno::EBUSY, ErrorKind::Suspended)) } else { Ok(()) }
    }

    /// An error if it is poisoned.
    pub(super) fn poisoned(&self) -> Result<()> {
        let Some(cause) = &self.poison else { return Ok(()) };
        Err(Error::check(Errno::ENOTRECOVERABLE, ErrorKind::Poisoned { cause: cause.clone() }))
    }
}

impl Locked<'_> {
    /// Gives the lock up while `work` runs. If `work` panics, `cleanup` gets the state, and the lock is given up.
    pub(super) fn unlocked<R>(&mut self, cleanup: impl FnOnce(&mut State), work: impl FnOnce() -> R) -> R {
        self.guard = None;
        let engine = self.engine;
        let done = on_panic(|| cleanup(&mut engine.state()), work);
        self.guard = engine.state().guard;
        done
    }

    /// Waits until the commit that is running has ended, or for a shorter time; a job in the background gives way. An
    /// error if the engine cannot be used then.
    fn wait(&mut self) -> Result<()> {
        self.give_way();
        self.usable()
    }

    /// Waits until no commit is running; a job in the background gives way.
    pub(super) fn settle_down(&mut self) {
        while self.running.is_some() {
            self.give_way();
        }
    }

    fn give_way(&mut self) {
        self.engine.job.control.pause();
        self.waiting += 1;
        self.sleep(None);
        self.waiting -= 1;
        // The job goes on once the last call that waits has given up the lock. Calls that wait must not wake each other:
        // they would do nothing else until the commit has ended.
        if self.waiting == 0 {
            self.engine.changed.notify_all();
        }
    }

    /// Gives the lock up until something has changed, or for a shorter time, but not for longer than `time`.
    pub(super) fn sleep(&mut self, time: Option<Duration>) {
        let Some(guard) = self.guard.take() else { return };
        let changed = &self.engine.changed;
        let slept = match time {
            None => changed.wait(guard),
            Some(time) => match changed.wait_timeout(guard, time) {
                Ok((guard, _)) => Ok(guard),
                Err(poisoned) => Err(PoisonError::new(poisoned.into_inner().0)),
            },
        };
        self.guard = match slept {
            Ok(guard) => Some(guard),
            Err(poisoned) => self.engine.after_panic(poisoned).guard,
        };
    }
}

impl Engine {
    /// Declares that the table is no longer reliable, for example after a panic. After that the engine can only be
    /// closed.
    pub fn poison(&self, cause: &str) {
        let mut state = self.state();
        state.poison = None; // `cause` says more than what `state` noted about the same panic.
        self.set_poison(&mut state, cause.to_owned());
    }

    pub(super) fn set_poison(&self, state: &mut State, cause: String) {
        self.log.write(Level::Error, format_args!("What is mapped is not known any more: {cause}"));
        state.owner = None;
        state.poison.get_or_insert(cause);
        self.job.control.pause();
        // The job may wait for the end of the transaction, and others for the job.
        self.changed.notify_all();
    }

    pub(super) fn state(&self) -> Locked<'_> {
        match self.state.lock() {
            Ok(guard) => Locked { engine: self, guard: Some(guard) },
            Err(poisoned) => self.after_panic(poisoned),
        }
    }

    /// A call panicked while it changed the state. The code that catches the panic calls `poison`, but other threads
    /// that already wait for this lock would continue with the broken state.
    fn after_panic<'a>(&'a self, poisoned: PoisonError<MutexGuard<'a, State>>) -> Locked<'a> {
        self.state.clear_poison();
        let mut state = Locked { engine: self, guard: Some(poisoned.into_inner()) };
        self.set_poison(&mut state, "a panic".to_owned());
        state
    }

    /// The state, when no commit is running.
    pub(super) fn settled(&self) -> Result<Locked<'_>> {
        self.log.deliver();
        let mut state = self.state();
        state.usable()?;
        while state.running.is_some() {
            state.wait()?;
        }
        Ok(state)
    }

    /// The state, for a call that changes something, when no commit is running.
    pub(super) fn changing(&self) -> Result<Locked<'_>> {
        self.settled().and_then(own)
    }

    /// The same for a call that changes nothing but `range`. It does not wait for a commit that leaves `range` alone if
    /// it `is_single`: it then makes one call of the kernel, without a plan.
    pub(super) fn changing_only(
        &self,
        range: IovaRange,
        is_single: impl Fn(&State) -> bool,
    ) -> Result<Locked<'_>> {
        let mut state = self.state();
        state.usable()?;
        while let Some(running) = &state.running {
            if !running.may_change(range) && is_single(&state) {
                break;
            }
            state.wait()?;
        }
        own(state)
    }

    /// Ends the transaction of the calling thread. A job that has waited for it goes on once the lock is given up.
    pub(super) fn end_transaction(&self) -> Result<Locked<'_>> {
        let mut state = self.in_transaction()?;
        state.owner = None;
        if state.job.phase == Phase::Running {
            self.changed.notify_all();
        }
        Ok(state)
    }

    /// The state, for a call that needs a transaction of the calling thread.
    pub(super) fn in_transaction(&self) -> Result<Locked<'_>> {
        let state = self.changing()?;
        if state.owner.is_some() {
            Ok(state)
        } else {
            Err(Error::check(Errno::EINVAL, ErrorKind::Transaction { open: false }))
        }
    }
}

/// A transaction belongs to the thread that opened it: a change of another thread would become a part of it, and would
/// be neither made nor reported when that thread's call returns.
fn own(state: Locked<'_>) -> Result<Locked<'_>> {
    state.not_suspended()?;
    match state.owner {
        Some(owner) if owner != thread::current().id() => {
            Err(Error::check(Errno::EBUSY, ErrorKind::OtherThread))
        }
        _ => Ok(state),
    }
}
