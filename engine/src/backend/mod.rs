//! What can hold mappings: the kernel's type1 driver, its iommufd, or an executable model of either.

use std::fmt;

use crate::addr::IovaRange;
use crate::error::{Errno, KernelResult, Result};
use crate::limits::{Limits, Memlock, UserCharges};
use crate::object::Object;
pub use crate::region::Mapping;

pub mod iommufd;
#[cfg(feature = "sim")]
pub mod sim;
pub mod type1;

/// When to fault memory in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PopulatePolicy {
    /// Leave it to the map call.
    Never,
    /// Fault in all of the memory before the first map call.
    Upfront,
    /// Fault in each entry before its own map call, while other entries are mapped.
    Overlapped,
}

/// A backend's capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Whether and when faulting memory in before the map call saves time.
    pub populate: PopulatePolicy,
    /// Whether concurrent map and unmap calls for disjoint ranges run in parallel. If not, they are still allowed,
    /// but wait for each other.
    pub parallel: bool,
    /// Whether the backend uses the objects of entries.
    pub objects: bool,
    /// Whether the container has no other user, so that [`Backend::unmap_all`] unmaps only what this backend mapped.
    pub exclusive: bool,
}

/// A backend that tracks which pages devices have written to. A bitmap has one bit for each of the smallest IOMMU
/// pages of a range, starting with its first page, and is zero before the call. A page that was reported is clean
/// again.
pub trait DirtyTracking {
    /// Maximum number of bytes one call can report.
    fn max_bytes(&self) -> u64;

    /// Starts or stops tracking; no effect if it is already started or stopped.
    fn track_dirty(&self, on: bool) -> KernelResult<()>;

    /// Reports the dirty pages of the entries in `range`, which does not cut any entry.
    fn read_dirty(&self, range: IovaRange, bitmap: &mut [u64]) -> KernelResult<()>;

    /// Like [`Backend::unmap`], but also reports the dirty pages of what it unmapped.
    fn unmap_dirty(&self, range: IovaRange, bitmap: &mut [u64]) -> KernelResult<u64>;
}

/// A backend with entries that another process can take over while devices access them.
///
/// The pages of an entry stay pinned and mapped throughout. Only its host address, which the kernel needs to account
/// for the pages, belongs to one process at a time.
pub trait Handover {
    /// Drops the host address of every entry inside `range`, which does not cut any entry; `None`: of every entry of
    /// the container.
    fn drop_addresses(&self, range: Option<IovaRange>) -> KernelResult<()>;

    /// Sets the host address of the entry that is exactly `mapping.range` to one of this process. It has none.
    fn set_address(&self, mapping: &Mapping) -> KernelResult<()>;
}

/// Turns the ENOENT of an unmap call into "0 bytes". iommufd returns it when no entry lies in the range, when the range
/// cuts an entry, and when the IOAS is gone.
///
/// Returned as it is, a caller would take the errno for success ("already unmapped"), although a range that cuts an
/// entry leaves a mapping in place. Every caller of [`Backend::unmap`] checks the number of bytes, so 0 is detected
/// there, and it is correct if nothing was mapped.
fn enoent_as_zero(answer: KernelResult<u64>) -> KernelResult<u64> {
    match answer {
        Err(Errno::ENOENT) => Ok(0),
        answer => answer,
    }
}

/// Unmaps everything in two calls, for type1 before 5.12, which cannot do so in one. If an entry crosses the middle,
/// both calls fail and nothing is unmapped.
fn unmap_halves(mut unmap: impl FnMut(IovaRange) -> KernelResult<u64>) -> KernelResult<u64> {
    let halves = [IovaRange::from_bounds(0, u64::MAX >> 1), IovaRange::from_bounds(1 << 63, u64::MAX)];
    let mut total = Ok(0u64);
    for range in halves.into_iter().flatten() {
        // The other half is unmapped even after a failure.
        let unmapped = unmap(range);
        total = total.and_then(|total| unmapped.map(|bytes| total.saturating_add(bytes)));
    }
    total
}

/// Holds the entries of one container.
pub trait Backend: Send + Sync + fmt::Debug {
    /// The backend's name, used in messages.
    fn name(&self) -> &'static str;

    /// The current limits. Called at open, and again before a transaction is refused because of them.
    fn limits(&self) -> Result<Limits>;

    /// The current memlock usage and limit.
    fn memlock(&self) -> Memlock;

    /// Who is charged for the locked memory of the user, with [`MemlockScope::User`](crate::limits::MemlockScope). Only
    /// read for messages.
    fn user_charges(&self) -> UserCharges {
        UserCharges::default()
    }

    /// The backend's capabilities, which never change.
    fn capabilities(&self) -> Capabilities;

    /// The backend's dirty tracking, if it supports that.
    fn dirty_tracking(&self) -> Option<&dyn DirtyTracking> {
        None
    }

    /// The way to hand entries over to another process, if the kernel has one.
    fn handover(&self) -> Option<&dyn Handover> {
        None
    }

    /// Maps one entry, or nothing. `object` is the object that the entry is a part of, if the caller named one.
    fn map(&self, mapping: &Mapping, object: Option<Object<'_>>) -> KernelResult<()>;

    /// Unmaps every entry inside `range`, which is not the whole 64-bit space. Returns the number of bytes unmapped.
    ///
    /// `range` must not cut an entry: type1 then returns an error and unmaps nothing; iommufd reports 0 bytes, but
    /// may have unmapped the entries before the one that is cut. The caller must therefore know the number of bytes
    /// to expect. Any other number means that its table is wrong.
    fn unmap(&self, range: IovaRange) -> KernelResult<u64>;

    /// Unmaps every entry of the container, including those of other users. Returns the number of bytes unmapped.
    fn unmap_all(&self) -> KernelResult<u64>;

    /// Whether the kernel has unmapped everything by itself, because the container has no IOMMU any more. Only asked
    /// after an unmap call has failed.
    fn is_emptied(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enoent_is_zero_bytes() {
        assert_eq!(enoent_as_zero(Err(Errno::ENOENT)), Ok(0));
        for answer in [Ok(0), Ok(4096), Err(Errno::EBUSY), Err(Errno::EINVAL), Err(Errno::EOVERFLOW)] {
            assert_eq!(enoent_as_zero(answer), answer);
        }
    }

    #[test]
    fn both_halves_are_unmapped_and_the_first_failure_is_returned() {
        let unmap = |answers: [KernelResult<u64>; 2]| {
            let mut ranges = Vec::new();
            let total = unmap_halves(|range| {
                ranges.push((range.start(), range.last()));
                answers[ranges.len() - 1]
            });
            assert_eq!(ranges, [(0, (1 << 63) - 1), (1 << 63, u64::MAX)]);
            total
        };
        assert_eq!(unmap([Ok(0x1000), Ok(0x2000)]), Ok(0x3000));
        assert_eq!(unmap([Err(Errno::EBUSY), Ok(0x2000)]), Err(Errno::EBUSY));
        assert_eq!(unmap([Ok(0x1000), Err(Errno::EIO)]), Err(Errno::EIO));
        assert_eq!(unmap([Err(Errno::EBUSY), Err(Errno::EIO)]), Err(Errno::EBUSY));
    }
}
