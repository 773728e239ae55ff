//! Checks for failures that are predictable, before anything is changed.

use std::collections::BTreeMap;

use crate::addr::IovaRange;
use crate::backend::Backend;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::limits::{Limits, Memlock, MemlockScope, UserCharges};
use crate::reconcile::plan::Plan;
use crate::reconcile::table::Entry;
use crate::region::{Backing, Kind};
use crate::sys::page::base_page;
use crate::sys::vma;

/// A plan that maps less than this, and unmaps nothing, is not compared with RLIMIT_MEMLOCK beforehand: reading the
/// limit takes as long as mapping several pages. If such a plan exceeds the limit, a map call fails soon enough, and
/// the rollback has nothing to map again.
const CHECKED_BYTES: u64 = 4 << 20;

/// Refuses a plan that the kernel would refuse half-way: too much memory pinned, or RAM that the IOMMU cannot
/// translate.
///
/// Device memory is not checked: it does not count as locked, and a refusal by the kernel is not an error.
pub fn check(plan: &Plan, limits: &Limits, backend: &dyn Backend) -> Result<()> {
    let ram = || plan.maps.iter().filter(|entry| entry.kind == Kind::Ram);
    if let Some(entry) = ram().find(|entry| !translatable(limits, entry.range)) {
        let kind = ErrorKind::OutsideIova { valid: limits.iova_ranges.clone() };
        return Err(Error::check(Errno::EINVAL, kind).at(entry.range).at_hva(entry.hva));
    }
    if plan.unmaps.is_empty() && plan.bytes() < CHECKED_BYTES {
        return Ok(());
    }
    locked(plan, backend)
}

/// Refuses a plan, however small, that would pin more memory than RLIMIT_MEMLOCK allows.
pub fn locked(plan: &Plan, backend: &dyn Backend) -> Result<()> {
    let ram = || plan.maps.iter().filter(|entry| entry.kind == Kind::Ram);
    let pinned = ram().fold(0u64, |sum, entry| sum.saturating_add(entry.range.length()));
    let unpinned = plan.unmaps.iter().fold(0u64, |sum, unmap| sum.saturating_add(unmap.ram_bytes));
    let needed = pinned.saturating_sub(unpinned);
    let Some(first) = ram().next() else { return Ok(()) };
    let memlock = backend.memlock();
    // What is pinned again counts as much as what is new, if the limit was lowered. What other processes of a user have
    // pinned takes long to read.
    let memlock = match memlock.scope {
        MemlockScope::User if needed == 0 => return Ok(()),
        MemlockScope::User => memlock,
        MemlockScope::Process => {
            Memlock { locked: memlock.locked.saturating_sub(unpinned.saturating_sub(pinned)), ..memlock }
        }
    };
    let refused = |needed| too_much_locked(first, needed, memlock, || backend.user_charges());
    let Some(error) = refused(needed) else { return Ok(()) };
    if memlock.scope == MemlockScope::User {
        return Err(error);
    }
    match uncounted(ram()) {
        0 => Err(error),
        bytes => refused(needed.saturating_sub(bytes)).map_or(Ok(()), Err),
    }
}

/// Bytes of the entries that type1 pins without counting them. Finding that out takes long, so only the first page of
/// each memory object is looked at. If that is wrong, the kernel decides.
fn uncounted<'a>(entries: impl Iterator<Item = &'a Entry>) -> u64 {
    let mut known: BTreeMap<Backing, bool> = BTreeMap::new();
    let uncounted = entries.filter(|entry| {
        let look = || vma::is_uncounted(entry.hva, base_page());
        if entry.backing == Backing::UNKNOWN {
            look()
        } else {
            *known.entry(entry.backing).or_insert_with(look)
        }
    });
    uncounted.fold(0, |sum, entry| sum.saturating_add(entry.range.length()))
}

/// Whether the IOMMU can translate every byte of `range`, as far as the kernel reports it.
pub fn translatable(limits: &Limits, range: IovaRange) -> bool {
    let ranges = &limits.iova_ranges;
    ranges.is_empty() || ranges.iter().any(|valid| valid.contains(range))
}

/// The error if pinning `needed` more bytes would exceed RLIMIT_MEMLOCK. `first` is the first entry to be pinned.
/// `charges` are read only where the limit is the user's.
pub fn too_much_locked(
    first: &Entry,
    needed: u64,
    memlock: Memlock,
    charges: impl FnOnce() -> UserCharges,
) -> Option<Error> {
    let Memlock { locked, limit: Some(limit), scope } = memlock else { return None };
    let (locked, kind) = match scope {
        MemlockScope::Process => (locked, ErrorKind::Memlock { needed, locked, limit }),
        MemlockScope::User => {
            // The process can have pinned more than through this backend.
            let mut charges = Box::new(charges());
            charges.own = charges.own.max(locked);
            let locked = charges.own.saturating_add(charges.others);
            (locked, ErrorKind::UserMemlock { needed, locked, limit, charges })
        }
    };
    let error = Error::check(Errno::ENOMEM, kind).at(first.range).at_hva(first.hva);
    (locked.saturating_add(needed) > limit).then_some(error)
}
