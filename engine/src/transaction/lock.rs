//! The lock of an engine's state: who may read it and who may change it.

use std::sync::MutexGuard;
use std::thread;

use super::{Engine, State};
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::log::Level;

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
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| {
            // A call panicked while it changed the state. The code that catches the panic calls `poison`, but other
            // threads that already wait for this lock would continue with the broken state.
            self.state.clear_poison();
            let mut state = poisoned.into_inner();
            self.set_poison(&mut state, "a panic".to_owned());
            state
        })
    }

    /// The state, if it is not poisoned.
    pub(super) fn healthy(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        match &state.poison {
            None => Ok(state),
            Some(cause) => {
                let kind = ErrorKind::Poisoned { cause: cause.clone() };
                Err(Error::check(Errno::ENOTRECOVERABLE, kind))
            }
        }
    }

    /// The state, for a call that changes something. A transaction belongs to the thread that opened it: a change of
    /// another thread would become a part of it, and would be neither made nor reported when that thread's call returns.
    pub(super) fn changing(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.healthy()?;
        match state.owner {
            Some(owner) if owner != thread::current().id() => {
                Err(Error::check(Errno::EBUSY, ErrorKind::OtherThread))
            }
            _ => Ok(state),
        }
    }

    /// The state, for a call that needs a transaction of the calling thread.
    pub(super) fn in_transaction(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.changing()?;
        if state.owner.is_some() {
            Ok(state)
        } else {
            Err(Error::check(Errno::EINVAL, ErrorKind::Transaction { open: false }))
        }
    }
}
