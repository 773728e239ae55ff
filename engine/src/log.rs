//! Messages for the user of the library, sent on the thread that called it.

use std::fmt;

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
pub struct Log(Option<Box<Sink>>);

impl Log {
    /// Discards all messages.
    pub const fn none() -> Self {
        Self(None)
    }

    /// Sends messages to `sink`, which is called on the thread that made the call, while the handle is locked.
    pub fn to(sink: impl Fn(Level, &str) + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(sink)))
    }

    pub(crate) fn write(&self, level: Level, message: fmt::Arguments<'_>) {
        if let Some(sink) = &self.0 {
            sink(level, &message.to_string());
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Log(set)" } else { "Log(none)" })
    }
}
