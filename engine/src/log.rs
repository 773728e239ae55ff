//! Messages for the user of the library, on the thread that called it.

use std::fmt;

/// How much a message matters, most important first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Something is broken and stays broken.
    Error,
    /// Something does not work that the user may have counted on.
    Warn,
    /// What an administrator may want to know once.
    Info,
    /// For the people who work on this library.
    Debug,
}

type Sink = dyn Fn(Level, &str) + Send + Sync;

/// Where messages go.
pub struct Log(Option<Box<Sink>>);

impl Log {
    /// Nowhere.
    pub const fn none() -> Self {
        Self(None)
    }

    /// To `sink`, which is called on the thread whose call caused the message, while the handle is locked.
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
