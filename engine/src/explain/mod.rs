//! Finds out why the kernel refused a map call: which limit, which page, which file. Used only after a failure, so that
//! calls that succeed cost nothing.

mod memory;

use crate::addr::{HostVa, IovaRange};
use crate::backend::Backend;
use crate::error::{EntryUse, Errno, Error, ErrorKind, Op, PageFault};
use crate::execute::Refusal;
use crate::limits::{Limits, Memlock, MemlockScope, UserCharges};
use crate::preflight;
use crate::reconcile::plan::NoRoom;
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
    let Error { op: Op::Map, kind: ErrorKind::Kernel, range, hva, errno, .. } = error else { return error };
    if errno == Errno::ENOSPC {
        return Error { kind: no_entries(failed).unwrap_or(ErrorKind::Kernel), ..error };
    }
    let (Some(range), Some(hva)) = (range, hva) else { return error };
    let kind = match errno {
        Errno::ENOMEM => return no_memory(error, failed),
        // Of a page with a memory error, the kernel says either.
        Errno::EFAULT | Errno::EHWPOISON => {
            let writable = failed.maps.iter().find(|entry| entry.range.contains(range));
            let found =
                memory::reason(hva, range.length(), writable.is_some_and(|entry| entry.perm.is_writable()));
            let poisoned =
                |kind: &ErrorKind| matches!(kind, ErrorKind::Page { fault: PageFault::Poisoned, .. });
            found.filter(|kind| errno == Errno::EFAULT || poisoned(kind))
        }
        Errno::EINVAL => refused(range, hva, failed.backend),
        Errno::EEXIST => Some(ErrorKind::Foreign),
        _ => None,
    };
    Error { kind: kind.unwrap_or(ErrorKind::Kernel), ..error }
}

/// The error of a device region that the kernel refused. `table` and `wanted` are those after the commit.
pub fn refusal(refusal: &Refusal, limits: &Limits, table: &MapTable, wanted: &WantedSet) -> Error {
    let Refusal { region, entry, errno, .. } = refusal;
    let kind = match *errno {
        Errno::EINVAL if !preflight::translatable(limits, *region) => {
            ErrorKind::OutsideIova { valid: limits.iova_ranges.clone() }
        }
        Errno::EFAULT => ErrorKind::Page { at: entry.hva, fault: PageFault::Device },
        Errno::ENOSPC if limits.entries.is_some() => {
            let available = limits.entries.map_or(0, |total| total.saturating_sub(table.len()));
            // The region may need more than one more: what was mapped of it is unmapped again.
            let room = NoRoom { needed: available.saturating_add(1), available };
            ErrorKind::Entries(entries(table, wanted, limits, room))
        }
        _ => ErrorKind::Kernel,
    };
    Error { kind, ..Error::kernel(Op::Map, *errno).at(entry.range).at_hva(entry.hva) }
}

/// What the entries of a container are used for. `limits.entries` includes those in `table`.
pub fn entries(table: &MapTable, wanted: &WantedSet, limits: &Limits, room: NoRoom) -> EntryUse {
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
    let NoRoom { needed, available } = room;
    let fit = limits.entries.unwrap_or(table.len());
    let total = limits.entries_at_open.unwrap_or(fit);
    let others = total.saturating_sub(fit);
    EntryUse { needed, available, total, exact, device, ram: table.len() - exact - device, others }
}

/// Why the container has no entry left for a map call, if it has a limit.
fn no_entries(failed: &Failed<'_>) -> Option<ErrorKind> {
    let Failed { table, wanted, maps, .. } = *failed;
    let limits = failed.backend.limits().ok()?;
    let available = limits.entries?;
    let missing = maps.iter().filter(|entry| table.is_free(entry.range));
    let room = NoRoom { needed: missing.count() as u64, available };
    let limits = Limits { entries: Some(available.saturating_add(table.len())), ..limits };
    Some(ErrorKind::Entries(entries(table, wanted, &limits, room)))
}

/// Why a range cannot be mapped that was inside the limits as last read, if the limits have changed: a group has joined
/// or left the container, or the first device was attached to the IOAS.
fn refused(range: IovaRange, hva: HostVa, backend: &dyn Backend) -> Option<ErrorKind> {
    let limits = match backend.limits() {
        Ok(limits) => limits,
        Err(Error { errno: Errno::EINVAL, .. }) => {
            return Some(ErrorKind::Other("the container has no IOMMU any more: its last group has left it"));
        }
        Err(_) => return None,
    };
    let page = limits.page_sizes.smallest();
    let mut values = [range.start(), range.last().wrapping_add(1), hva.raw()].into_iter();
    if let Some(value) = values.find(|value| value & (page - 1) != 0) {
        return Some(ErrorKind::Misaligned { value, page });
    }
    (!preflight::translatable(&limits, range)).then_some(ErrorKind::OutsideIova { valid: limits.iova_ranges })
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
    let too_much = |first| preflight::too_much_locked(first, pins.saturating_sub(unpins), memlock, charges);
    if let Some(error) = ram().next().and_then(too_much) {
        return error;
    }
    let user_limit = memlock.limit.filter(|_| memlock.scope == MemlockScope::User);
    let available = memlock::available_memory();
    Error { kind: ErrorKind::NoMemory { available, user_limit }, ..error }
}
