//! Messages for the user of the library, sent on a thread that called it.

use std::cell::Cell;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// The importance of a message, most important first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// A permanent failure.
    Error,
    /// A problem with something that the user may rely on.
    Warn,
    /// Information that an administrator may need once.
    Info,
    /// Details for developers of this library.
    Debug,
}

type Sink = dyn Fn(Level, &str) + Send + Sync;

/// The destination of messages.
pub struct Log {
    sink: Option<Box<Sink>>,
    /// The messages of a thread that may not call the sink.
    held: Mutex<Vec<(Level, String)>>,
}

thread_local! {
    static MAY_NOT_CALL: Cell<bool> = const { Cell::new(false) };
}

impl Log {
    /// Discards all messages.
    pub const fn none() -> Self {
        Self { sink: None, held: Mutex::new(Vec::new()) }
    }

    /// Sends messages to `sink`, which is called on the thread that made the call, while the handle is locked. A message
    /// of a job in the background is sent by the next call that waits for the job, changes something or closes.
    pub fn to(sink: impl Fn(Level, &str) + Send + Sync + 'static) -> Self {
        Self { sink: Some(Box::new(sink)), ..Self::none() }
    }

    pub(crate) fn write(&self, level: Level, message: fmt::Arguments<'_>) {
        let Some(sink) = &self.sink else { return };
        if MAY_NOT_CALL.get() {
            self.held.lock().unwrap_or_else(PoisonError::into_inner).push((level, message.to_string()));
        } else {
            sink(level, &message.to_string());
        }
    }

    /// From now on, messages of the calling thread are kept for [`Log::deliver`].
    pub(crate) fn hold_own() {
        MAY_NOT_CALL.set(true);
    }

    /// Sends the messages that were kept.
    pub(crate) fn deliver(&self) {
        let Some(sink) = &self.sink else { return };
        let held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        for (level, message) in held {
            sink(level, &message);
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.sink.is_some() { "Log(set)" } else { "Log(none)" })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_a_thread_may_not_send_another_one_sends() {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let log = Log::to({
            let sent = Arc::clone(&sent);
            move |level, text| {
                sent.lock().unwrap().push((level, text.to_owned(), std::thread::current().id()))
            }
        });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                Log::hold_own();
                log.write(Level::Warn, format_args!("{} of {}", 1, 2));
            });
        });
        assert_eq!(sent.lock().unwrap().len(), 0);
        log.deliver();
        log.deliver();
        let expected = (Level::Warn, "1 of 2".to_owned(), std::thread::current().id());
        assert_eq!(*sent.lock().unwrap(), [expected]);
    }
}
