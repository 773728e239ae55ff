//! Checks for failures that are predictable, before anything is changed.

use crate::addr::IovaRange;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::limits::{Limits, Memlock};
use crate::reconcile::plan::Plan;
use crate::reconcile::table::Entry;
use crate::region::Kind;

/// A plan that maps less than this, and unmaps nothing, is not compared with RLIMIT_MEMLOCK beforehand: reading the
/// limit takes as long as mapping several pages. If such a plan exceeds the limit, a map call fails soon enough, and
/// the rollback has nothing to map again.
const CHECKED_BYTES: u64 = 4 << 20;

/// Refuses a plan that the kernel would refuse half-way: too much memory pinned, or RAM that the IOMMU cannot
/// translate.
///
/// Device memory is not checked: it does not count as locked, and a refusal by the kernel is not an error.
pub fn check(plan: &Plan, limits: &Limits, memlock: impl FnOnce() -> Memlock) -> Result<()> {
    let ram = || plan.maps.iter().filter(|entry| entry.kind == Kind::Ram);
    if let Some(entry) = ram().find(|entry| !translatable(limits, entry.range)) {
        let kind = ErrorKind::OutsideIova { valid: limits.iova_ranges.clone() };
        return Err(Error::check(Errno::EINVAL, kind).at(entry.range).at_hva(entry.hva));
    }
    if plan.unmaps.is_empty() && plan.bytes() < CHECKED_BYTES {
        return Ok(());
    }
    locked(plan, memlock)
}

/// Refuses a plan, however small, that would pin more memory than RLIMIT_MEMLOCK allows.
pub fn locked(plan: &Plan, memlock: impl FnOnce() -> Memlock) -> Result<()> {
    let ram = || plan.maps.iter().filter(|entry| entry.kind == Kind::Ram);
    let pinned = ram().fold(0u64, |sum, entry| sum.saturating_add(entry.range.length()));
    let unpinned = plan.unmaps.iter().fold(0u64, |sum, unmap| sum.saturating_add(unmap.ram_bytes));
    let needed = pinned.saturating_sub(unpinned);
    match ram().next() {
        Some(first) if needed > 0 => too_much_locked(first, needed, memlock()).map_or(Ok(()), Err),
        _ => Ok(()),
    }
}

/// The error of a plan without unmaps for which a map call has failed with ENOMEM, if RLIMIT_MEMLOCK explains it:
/// what [`check`] returns, or would have returned. `mapped` bytes were mapped before the failure.
pub fn explain(plan: &Plan, mapped: u64, memlock: Memlock) -> Option<Error> {
    let ram = || plan.maps.iter().filter(|entry| entry.kind == Kind::Ram);
    let needed = ram().fold(0u64, |sum, entry| sum.saturating_add(entry.range.length()));
    let before = Memlock { locked: memlock.locked.saturating_sub(mapped), ..memlock };
    too_much_locked(ram().next()?, needed, before)
}

/// Whether the IOMMU can translate every byte of `range`, as far as the kernel reports it.
pub fn translatable(limits: &Limits, range: IovaRange) -> bool {
    let ranges = &limits.iova_ranges;
    ranges.is_empty() || ranges.iter().any(|valid| valid.contains(range))
}

/// The error if pinning `needed` more bytes would exceed RLIMIT_MEMLOCK. `first` is the first entry to be pinned.
pub fn too_much_locked(first: &Entry, needed: u64, memlock: Memlock) -> Option<Error> {
    let Memlock { locked, limit: Some(limit), .. } = memlock else { return None };
    let kind = ErrorKind::Memlock { needed, locked, limit };
    let error = Error::check(Errno::ENOMEM, kind).at(first.range).at_hva(first.hva);
    (locked.saturating_add(needed) > limit).then_some(error)
}
