//! Finds out why the kernel refused a map call: which limit, which page, which file. Used only after a failure, so that
//! calls that succeed cost nothing.

mod memory;

use crate::addr::IovaRange;
use crate::backend::Backend;
use crate::error::{EntryUse, Errno, Error, ErrorKind, Op, PageFault};
use crate::execute::Refusal;
use crate::limits::{Limits, Memlock, MemlockScope, UserCharges};
use crate::preflight;
use crate::reconcile::table::{Entry, MapTable};
use crate::reconcile::wanted::WantedSet;
use crate::region::Kind;
use crate::sys::memlock;

/// A commit in which a map call failed.
#[derive(Clone, Copy, Debug)]
pub struct Failed<'a> {
    /// The backend that refused the call.
    pub backend: &'a dyn Backend,
    /// What the container holds now.
    pub table: &'a MapTable,
    /// What is wanted.
    pub wanted: &'a WantedSet,
    /// The entries of RAM that the commit maps.
    pub maps: &'a [Entry],
    /// Bytes of RAM that it unmaps.
    pub unpins: u64,
    /// Bytes that it has mapped so far.
    pub mapped: u64,
    /// Bytes that it has unmapped so far.
    pub unmapped: u64,
}

/// Adds the reason to the error of a map call, if it can be found.
pub fn map(error: Error, failed: &Failed<'_>) -> Error {
    let Error { op: Op::Map, kind: ErrorKind::Kernel, range: Some(range), hva: Some(hva), errno, .. } = error
    else {
        return error;
    };
    let kind = match errno {
        Errno::ENOMEM => return no_memory(error, failed),
        Errno::EFAULT => {
            let writable = failed.maps.iter().find(|entry| entry.range.contains(range));
            memory::reason(hva, range.length(), writable.is_some_and(|entry| entry.perm.is_writable()))
        }
        Errno::EINVAL => outside(range, failed.backend),
        Errno::ENOSPC => {
            let available = failed.backend.limits().ok().and_then(|limits| limits.entries).unwrap_or(0);
            let needed = failed.maps.len() as u64;
            Some(ErrorKind::Entries(entries(failed.table, failed.wanted, needed, available)))
        }
        Errno::EEXIST => Some(ErrorKind::Foreign),
        _ => None,
    };
    Error { kind: kind.unwrap_or(ErrorKind::Kernel), ..error }
}

/// The error of a device region that the kernel refused.
pub fn refusal(refusal: &Refusal, limits: &Limits) -> Error {
    let Refusal { region, entry, errno, .. } = refusal;
    let kind = match *errno {
        Errno::EINVAL if !preflight::translatable(limits, *region) => {
            ErrorKind::OutsideIova { valid: limits.iova_ranges.clone() }
        }
        Errno::EFAULT => ErrorKind::Page { at: entry.hva, fault: PageFault::Device },
        _ => ErrorKind::Kernel,
    };
    Error { kind, ..Error::kernel(Op::Map, *errno).at(entry.range).at_hva(entry.hva) }
}

/// What the entries of a container are used for, when `needed` more have to fit and `available` do.
pub fn entries(table: &MapTable, wanted: &WantedSet, needed: u64, available: u64) -> EntryUse {
    let is_exact =
        |entry: &Entry| wanted.overlapping(entry.range).next().is_some_and(|wanted| wanted.region.exact);
    let (mut exact, mut device) = (0, 0);
    for entry in table.iter() {
        if is_exact(entry) {
            exact += 1;
        } else if entry.kind == Kind::Device {
            device += 1;
        }
    }
    let held = table.len();
    EntryUse {
        needed,
        available,
        total: held.saturating_add(available),
        exact,
        device,
        ram: held - exact - device,
    }
}

/// Why a range cannot be mapped that was inside the limits as last read, if the limits have changed.
fn outside(range: IovaRange, backend: &dyn Backend) -> Option<ErrorKind> {
    match backend.limits() {
        Ok(limits) if preflight::translatable(&limits, range) => None,
        Ok(limits) => Some(ErrorKind::OutsideIova { valid: limits.iova_ranges }),
        Err(Error { errno: Errno::EINVAL, .. }) => {
            Some(ErrorKind::Other("the container has no IOMMU any more: its last group has left it"))
        }
        Err(_) => None,
    }
}

/// The error of a commit that the kernel refused with ENOMEM: what the preflight returns, or would have returned, if
/// RLIMIT_MEMLOCK explains it.
fn no_memory(error: Error, failed: &Failed<'_>) -> Error {
    let &Failed { backend, maps, unpins, mapped, unmapped, .. } = failed;
    let before = |now: u64| now.saturating_add(unmapped).saturating_sub(mapped);
    let memlock = backend.memlock();
    let memlock = Memlock { locked: before(memlock.locked), ..memlock };
    let ram = || maps.iter().filter(|entry| entry.kind == Kind::Ram);
    let pins = ram().fold(0u64, |sum, entry| sum.saturating_add(entry.range.length()));
    let charges = || {
        let charges = backend.user_charges();
        UserCharges { own: before(charges.own), ..charges }
    };
    if let Some(first) = ram().next()
        && let Some(error) = preflight::too_much_locked(first, pins.saturating_sub(unpins), memlock, charges)
    {
        return error;
    }
    let user_limit = memlock.limit.filter(|_| memlock.scope == MemlockScope::User);
    let available = memlock::available_memory();
    Error { kind: ErrorKind::NoMemory { available, user_limit }, ..error }
}
