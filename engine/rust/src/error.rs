//! Errors.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;

use vfio_fast_engine::error::{self, Op};

use crate::range::inclusive;

/// The result of the crate's functions that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What the crate was doing when it failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Operation {
    /// Opening the container.
    Open,
    /// Checking arguments, state or limits: no mapping was changed.
    Check,
    /// Mapping.
    Map,
    /// Unmapping.
    Unmap,
    /// Reading the container's limits.
    Info,
    /// Reading the pages that devices have written to.
    Dirty,
    /// Something else.
    Other,
}

/// A failed call: the errno, what it was about, and as text what to do about it.
///
/// The errno and the numbers are part of the crate's promise; the text, on one line, may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(Box<error::Error>);

impl Error {
    /// The errno: the kernel's, or the one that the kernel would have returned.
    pub fn errno(&self) -> i32 {
        self.0.errno.0
    }

    /// What failed.
    pub fn operation(&self) -> Operation {
        match self.0.op {
            Op::Open => Operation::Open,
            Op::Check => Operation::Check,
            Op::Map => Operation::Map,
            Op::Unmap => Operation::Unmap,
            Op::Info => Operation::Info,
            Op::Dirty => Operation::Dirty,
            Op::Discard => Operation::Other,
        }
    }

    /// The device addresses in question, if there are any.
    pub fn iova(&self) -> Option<RangeInclusive<u64>> {
        self.0.range.map(inclusive)
    }

    /// The host address in question, if there is one.
    pub fn host(&self) -> Option<u64> {
        self.0.hva.map(|hva| hva.raw())
    }

    /// What was needed and what was available, if a limit is the reason: bytes of locked memory or of a file system, or
    /// with `ENOSPC` of a container mappings.
    pub fn needed_and_available(&self) -> Option<(u64, u64)> {
        self.0.needed_and_available()
    }

    /// Device addresses that are still mapped although they are no longer wanted, because the kernel refused to unmap
    /// them. [`Engine::retry_unmap`](crate::Engine::retry_unmap) tries again.
    pub fn leftover(&self) -> Vec<RangeInclusive<u64>> {
        self.0.unfinished.iter().flat_map(|unfinished| &unfinished.leftover).copied().map(inclusive).collect()
    }

    /// Device addresses that were mapped before the call, are still wanted, and could not be mapped again. The next
    /// commit that touches them tries again.
    pub fn missing(&self) -> Vec<RangeInclusive<u64>> {
        let unfinished = self.0.unfinished.iter();
        let ranges = unfinished.flat_map(|unfinished| unfinished.missing.iter().chain(&unfinished.devices));
        ranges.copied().map(inclusive).collect()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {}

impl From<error::Error> for Error {
    fn from(error: error::Error) -> Self {
        Self(Box::new(error))
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = io::Error::from_raw_os_error(error.errno()).kind();
        Self::new(kind, error)
    }
}
