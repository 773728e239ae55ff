//! What a failed commit left different from what is wanted.

use std::fmt;

use super::Errno;
use crate::addr::IovaRange;

/// What a rollback could not restore, in ascending ranges.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Unfinished {
    /// Entries that stay mapped, although a part of them or all of them is no longer wanted.
    pub leftover: Vec<IovaRange>,
    /// Why: the kernel's error of an unmap call, or `None` if no call was made because the rest of the entries would
    /// exceed a limit.
    pub refused: Option<Errno>,
    /// RAM that is wanted and not mapped.
    pub missing: Vec<IovaRange>,
    /// Device memory that is wanted and no longer mapped.
    pub devices: Vec<IovaRange>,
    /// Whether nothing will be tried again, because the engine was closed.
    pub closing: bool,
    /// What failed first, if the error is about the first missing range.
    pub first: Option<String>,
}

impl Unfinished {
    /// Whether everything was restored.
    pub fn is_empty(&self) -> bool {
        self.leftover.is_empty() && self.missing.is_empty() && self.devices.is_empty()
    }
}

/// The first of several ranges, and how many more there are.
struct Ranges<'a>(&'a [IovaRange]);

impl fmt::Display for Ranges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => Ok(()),
            [only] => write!(f, "IOVA {only}"),
            [first, more @ ..] => write!(f, "IOVA {first} and {} more", more.len()),
        }
    }
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { leftover, refused, missing, devices, closing, first } = self;
        if *closing {
            return write!(f, "; still mapped, until the container itself is closed: {}", Ranges(leftover));
        }
        if !missing.is_empty() {
            write!(f, "; wanted, but not mapped any more: {}", Ranges(missing))?;
        }
        if !devices.is_empty() {
            write!(f, "; device memory that is not mapped any more: {}", Ranges(devices))?;
        }
        if !leftover.is_empty() {
            write!(f, "; still mapped, though not wanted as a whole: {}", Ranges(leftover))?;
            match refused {
                Some(errno) => write!(f, " (the unmap failed: {errno})")?,
                None => write!(f, " (not unmapped, because its rest could not be mapped again)")?,
            }
        }
        if !missing.is_empty() || !leftover.is_empty() {
            write!(f, "; the next call that touches a range tries again")?;
        }
        match first {
            Some(first) => write!(f, "; the first failure was: {first}"),
            None => Ok(()),
        }
    }
}
