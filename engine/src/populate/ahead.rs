//! Faults memory in ahead of a map call that the program makes by itself.
//!
//! A commit knows all of its map calls and shares the work of them. Here each call comes alone, and its outcome must not
//! depend on what was done before it. So whatever is in doubt is left to the call.

use std::fmt;
use std::sync::OnceLock;

use super::method::Choice;
use super::{
    CHUNK_BYTES, HostRange, MIN_PARALLEL_BYTES, Method, PopulateOptions, Report, Survey, ThreadLimit, advise,
    files, populate,
};
use crate::addr::Bytes;
use crate::limits::{Memlock, MemlockScope};
use crate::sys::memlock;
use crate::sys::pagemap::Pagemap;

/// Faults memory in, as this host does it best.
#[derive(Debug)]
pub struct Ahead {
    /// Asked for once: it does not change while a program runs.
    method: OnceLock<Method>,
}

/// Why memory was left to the map call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// So little that threads would cost more than they save.
    Small,
    /// The process may use one CPU only.
    OneCpu,
    /// The host has no way to fault memory in that does not make the map call slower.
    NoMethod,
    /// The kernel would refuse the map call for its limit of locked memory.
    Limit,
    /// The file system has too little space, or its pages cannot be pinned.
    FileSystem,
}

impl Default for Ahead {
    fn default() -> Self {
        Self::new()
    }
}

impl Ahead {
    /// Asks nothing yet.
    pub const fn new() -> Self {
        Self { method: OnceLock::new() }
    }

    /// Makes `range` present, on as many threads as the process has CPUs. All of them have ended when this returns. The
    /// locked memory of `scope` counts against the limit.
    ///
    /// Memory that is present is only looked at. Memory that is left to the map call for want of CPUs or of a method
    /// still gets the advice for huge pages.
    pub fn fault_in(&self, range: HostRange, scope: MemlockScope) -> Result<Report, Left> {
        if range.bytes < MIN_PARALLEL_BYTES {
            return Err(Left::Small);
        }
        let pieces = [range];
        let mut options = PopulateOptions {
            threads: 1,
            method: *self.method.get_or_init(|| Choice::of_this_host().method),
            cpus: None,
            huge_pages: true,
            chunk: CHUNK_BYTES,
            control: None,
        };
        // First, because it costs less than every other question, and most calls of a running guest end here.
        let survey = Survey::of(&pieces, options, Pagemap::open().as_ref());
        if survey.missing == 0 {
            return Ok(survey.done);
        }
        options.threads = ThreadLimit::new(0, None).threads;
        let left = match options.method {
            Method::Maps => Some(Left::NoMethod),
            Method::Advice | Method::Pins => (options.threads < 2).then_some(Left::OneCpu),
        };
        if let Some(left) = left {
            advise(&pieces);
            return Err(left);
        }
        if Locked::now(scope).is_exceeded_by(range.bytes) {
            return Err(Left::Limit);
        }
        match files::can_hold(&pieces) {
            Ok(true) => Ok(populate(&pieces, options)),
            Ok(false) | Err(_) => Err(Left::FileSystem),
        }
    }
}

/// Locked memory and its limit, now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Locked(Memlock);

impl Locked {
    /// What the kernel counts together with a map call of `scope`. Of the other processes of a user nothing is known, so
    /// with [`MemlockScope::User`] nothing counts as locked.
    pub fn now(scope: MemlockScope) -> Self {
        let locked = memlock::memlock();
        Self(match scope {
            MemlockScope::Process => locked,
            MemlockScope::User => Memlock { locked: 0, scope, ..locked },
        })
    }

    /// Whether so many more bytes would exceed the limit, if the kernel counts all of them.
    pub fn is_exceeded_by(self, bytes: u64) -> bool {
        self.0.limit.is_some_and(|limit| self.0.locked.saturating_add(bytes) > limit)
    }
}

impl fmt::Display for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Memlock { locked, limit, scope } = self.0;
        match limit {
            Some(limit) => write!(f, "RLIMIT_MEMLOCK is {}", Bytes(limit))?,
            None => f.write_str("RLIMIT_MEMLOCK does not apply")?,
        }
        match scope {
            MemlockScope::Process => write!(f, ", and this process has locked {}", Bytes(locked)),
            MemlockScope::User => f.write_str(", for all processes of the user together"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{HUGE_PAGE, HostVa};

    fn locked(locked: u64, limit: Option<u64>, scope: MemlockScope) -> Locked {
        Locked(Memlock { locked, limit, scope })
    }

    #[test]
    fn little_memory_is_not_looked_at() {
        let range = HostRange { hva: HostVa::from_raw(0), bytes: MIN_PARALLEL_BYTES - 4096, writable: true };
        assert_eq!(Ahead::new().fault_in(range, MemlockScope::Process), Err(Left::Small));
    }

    #[test]
    fn memory_that_does_not_exist_is_left_to_the_map() {
        let range = HostRange { hva: HostVa::from_raw(1 << 62), bytes: 8 * HUGE_PAGE, writable: true };
        match Ahead::new().fault_in(range, MemlockScope::Process) {
            Ok(report) => assert_eq!((report.bytes, report.skipped_bytes), (0, 8 * HUGE_PAGE)),
            Err(left) => assert!(matches!(left, Left::OneCpu | Left::NoMethod | Left::Limit), "{left:?}"),
        }
    }

    #[test]
    fn a_limit_is_exceeded_only_if_it_certainly_is() {
        for scope in [MemlockScope::Process, MemlockScope::User] {
            assert!(!locked(u64::MAX, None, scope).is_exceeded_by(1));
            assert!(!locked(1 << 20, Some(2 << 20), scope).is_exceeded_by(1 << 20));
            assert!(locked(1 << 20, Some(2 << 20), scope).is_exceeded_by((1 << 20) + 1));
        }
    }

    #[test]
    fn the_numbers_are_named() {
        let text = locked(1 << 20, Some(8 << 20), MemlockScope::Process).to_string();
        assert!(text.contains("8388608 bytes (8 MiB)") && text.contains("locked 1048576 bytes"), "{text}");
        assert!(locked(0, None, MemlockScope::User).to_string().contains("does not apply"));
    }
}
