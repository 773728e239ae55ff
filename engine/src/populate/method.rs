//! How memory is faulted in on this host.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::addr::HostVa;
use crate::error::{Errno, KernelResult};
use crate::sys::madvise;
use crate::sys::movable::Movable;
use crate::sys::proc;
use crate::sys::uring::PinRing;

/// How memory is faulted in before it is mapped.
///
/// madvise places pages like any other fault: in ZONE_MOVABLE or a CMA area, where there is one. A device may access
/// a page for an unlimited time, so the pin of a map call moves each of them elsewhere, on one thread: that takes two
/// to three times as long as leaving the fault-in to the map call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// By madvise (MADV_POPULATE_WRITE).
    Advice,
    /// By pins that are dropped at once, so that pages are placed where a map call would place them.
    Pins,
    /// By the map calls themselves.
    Maps,
}

/// The method for this host, and the reason if it is not the usual one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The method.
    pub method: Method,
    reason: Option<Reason>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reason {
    NoAdvice,
    Movable { movable: Option<Movable>, no_pins: Option<Errno> },
}

impl Choice {
    /// Asks the kernel. Takes a fraction of a millisecond.
    pub fn of_this_host() -> Self {
        Self::of(madvise::can_populate(), Movable::read, || PinRing::new().map(drop))
    }

    /// The choice, given what the kernel has: the advices, movable memory (`None`: not known) and pins.
    fn of(
        advice: bool,
        movable: impl FnOnce() -> Option<Movable>,
        pins: impl FnOnce() -> KernelResult<()>,
    ) -> Self {
        if !advice {
            return Self { method: Method::Maps, reason: Some(Reason::NoAdvice) };
        }
        let movable = movable();
        if movable.is_some_and(|movable| !movable.any()) {
            return Self { method: Method::Advice, reason: None };
        }
        // Pins are as fast as the advice, so they are the better choice where nothing is known.
        let (method, no_pins) = match (pins(), movable) {
            (Ok(()), _) => (Method::Pins, None),
            (Err(errno), Some(_)) => (Method::Maps, Some(errno)),
            (Err(errno), None) => (Method::Advice, Some(errno)),
        };
        Self { method, reason: Some(Reason::Movable { movable, no_pins }) }
    }

    /// What is done and why, if it is not the usual.
    pub fn explanation(&self) -> Option<impl fmt::Display> {
        self.reason
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Movable { movable, no_pins } = self else {
            return f.write_str(
                "This kernel has no MADV_POPULATE_WRITE (Linux 5.14): memory is not faulted in before it is mapped",
            );
        };
        match movable {
            Some(Movable { zone_pages, cma_kib }) => write!(
                f,
                "A page in ZONE_MOVABLE ({zone_pages} pages) or a CMA area ({cma_kib} KiB) would be moved when it is \
                 mapped: "
            ),
            None => {
                f.write_str("/proc/zoneinfo cannot be read, so pages may be moved when they are mapped: ")
            }
        }?;
        match (no_pins, movable) {
            (None, _) => f.write_str("memory is faulted in by pins (io_uring), which place it elsewhere"),
            (Some(errno), Some(_)) => {
                write!(
                    f,
                    "memory is not faulted in before it is mapped, because pins by io_uring failed: {errno}"
                )
            }
            (Some(errno), None) => {
                write!(f, "memory is faulted in by madvise, because pins by io_uring failed: {errno}")
            }
        }
    }
}

/// What is lost because files in /proc cannot be read, if anything is.
pub fn lost() -> Option<String> {
    proc::lost()
}

/// Pins that are dropped at once, on several threads.
#[derive(Debug, Default)]
pub(super) struct Pins {
    /// Rings that no thread uses.
    idle: Mutex<Vec<PinRing>>,
}

impl Pins {
    /// Makes the `bytes` bytes at `hva` present and writable.
    pub fn fault_in(&self, hva: HostVa, bytes: u64) -> KernelResult<()> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let free = idle().pop();
        let ring = free.map_or_else(PinRing::new, Ok)?;
        let pinned = ring.fault_in(hva, bytes);
        idle().push(ring);
        pinned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(advice: bool, movable: Option<Movable>, pins: KernelResult<()>) -> (Method, Option<String>) {
        let choice = Choice::of(advice, || movable, || pins);
        (choice.method, choice.explanation().map(|text| text.to_string()))
    }

    #[test]
    fn movable_memory_is_faulted_in_by_pins_or_by_the_maps() {
        let none = Some(Movable::default());
        let refused = Err(Errno(libc::EPERM));
        for movable in [Movable { zone_pages: 7, cma_kib: 0 }, Movable { zone_pages: 0, cma_kib: 8 }] {
            let (method, text) = choice(true, Some(movable), Ok(()));
            assert_eq!(method, Method::Pins);
            let text = text.unwrap();
            let numbers = format!("({} pages) or a CMA area ({} KiB)", movable.zone_pages, movable.cma_kib);
            assert!(text.contains(&numbers) && text.contains("by pins (io_uring)"), "{text}");
            let (method, text) = choice(true, Some(movable), refused);
            assert_eq!(method, Method::Maps);
            let text = text.unwrap();
            assert!(text.contains("not faulted in") && text.contains("Operation not permitted"), "{text}");
        }
        assert_eq!(choice(true, none, Ok(())), (Method::Advice, None));
    }

    #[test]
    fn nothing_is_asked_that_does_not_matter() {
        let usual = Choice::of(true, || Some(Movable::default()), || panic!("asked for pins"));
        assert_eq!(usual.method, Method::Advice);
        let old = Choice::of(false, || panic!("asked for zones"), || panic!("asked for pins"));
        assert_eq!(old.method, Method::Maps);
        assert!(old.explanation().unwrap().to_string().contains("5.14"));
    }

    #[test]
    fn where_nothing_is_known_pins_come_first() {
        let (method, text) = choice(true, None, Ok(()));
        assert!(method == Method::Pins && text.unwrap().starts_with("/proc/zoneinfo cannot be read"));
        let (method, text) = choice(true, None, Err(Errno::EOPNOTSUPP));
        assert!(method == Method::Advice && text.unwrap().contains("by madvise"));
    }
}
