//! Checks for failures that are predictable, before anything is changed.

use crate::addr::IovaRange;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::limits::{Limits, Memlock};
use crate::reconcile::plan::Plan;
use crate::region::Kind;

/// Refuses a plan that the kernel would refuse half-way: too much memory pinned, or RAM that the IOMMU cannot
/// translate.
///
/// Device memory is not checked: it does not count as locked, and a refusal by the kernel is not an error.
pub fn check(plan: &Plan, limits: &Limits, memlock: impl FnOnce() -> Memlock) -> Result<()> {
    let ram = || plan.maps.iter().filter(|entry| entry.kind == Kind::Ram);
    if !limits.iova_ranges.is_empty() {
        let translatable = |range: IovaRange| limits.iova_ranges.iter().any(|valid| valid.contains(range));
        if let Some(entry) = ram().find(|entry| !translatable(entry.range)) {
            let kind = ErrorKind::OutsideIova { valid: limits.iova_ranges.clone() };
            return Err(Error::check(Errno::EINVAL, kind).at(entry.range).at_hva(entry.hva));
        }
    }
    let pinned = ram().fold(0u64, |sum, entry| sum.saturating_add(entry.range.length()));
    let unpinned = plan.unmaps.iter().fold(0u64, |sum, unmap| sum.saturating_add(unmap.ram_bytes));
    let needed = pinned.saturating_sub(unpinned);
    if needed == 0 {
        return Ok(());
    }
    let Memlock { locked, limit: Some(limit), .. } = memlock() else { return Ok(()) };
    if locked.saturating_add(needed) <= limit {
        return Ok(());
    }
    let error = Error::check(Errno::ENOMEM, ErrorKind::Memlock { needed, locked, limit });
    Err(match ram().next() {
        Some(first) => error.at(first.range).at_hva(first.hva),
        None => error,
    })
}
