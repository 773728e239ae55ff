//! What can hold mappings: the kernel's type1 driver, its iommufd, or an executable model of either.

use std::fmt;

use crate::addr::IovaRange;
use crate::error::{Errno, KernelResult, Result};
use crate::limits::{Limits, Memlock};
use crate::object::Object;
pub use crate::region::Mapping;

pub mod iommufd;
pub mod sim;
pub mod type1;

/// When memory is faulted in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PopulatePolicy {
    /// Not ahead of its map call.
    Never,
    /// All of it before the first map call.
    Upfront,
    /// Each entry before its own map call, while other entries are mapped.
    Overlapped,
}

/// What a backend can do, and what pays on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Whether and when faulting memory in before it is mapped pays.
    pub populate: PopulatePolicy,
    /// Whether map and unmap calls of disjoint ranges run concurrently if several threads make them. Where not, they
    /// are still allowed and wait for each other.
    pub parallel: bool,
    /// Whether it uses the objects behind entries.
    pub objects: bool,
    /// Whether nothing else maps in the container, so that [`Backend::unmap_all`] unmaps only what was mapped here.
    pub exclusive: bool,
}

/// A backend that tracks which pages devices have written to. A bitmap has a bit for each of the smallest IOMMU pages
/// of a range, from its first page on, and was zero before; a page that was reported is clean again.
pub trait DirtyTracking {
    /// Maximum number of bytes one call can report.
    fn max_bytes(&self) -> u64;

    /// Starts or stops tracking. It may be in that state already.
    fn track_dirty(&self, on: bool) -> KernelResult<()>;

    /// Reports the dirty pages of the entries in `range`, which cuts none.
    fn read_dirty(&self, range: IovaRange, bitmap: &mut [u64]) -> KernelResult<()>;

    /// [`Backend::unmap`], and reports the dirty pages of what it unmapped.
    fn unmap_dirty(&self, range: IovaRange, bitmap: &mut [u64]) -> KernelResult<u64>;
}

/// Turns the ENOENT of an unmap call into "0 bytes". iommufd returns it when no entry lies in the range, when the range
/// cuts an entry, and when the IOAS is gone.
///
/// A caller would mistake the errno for success ("already unmapped"), and leave a mapping behind if the range cut an
/// entry. The number of bytes meets the check that every caller of [`Backend::unmap`] has to make, and is right where
/// nothing was mapped.
fn enoent_as_zero(answer: KernelResult<u64>) -> KernelResult<u64> {
    match answer {
        Err(Errno::ENOENT) => Ok(0),
        answer => answer,
    }
}

/// Unmaps everything in two calls, for type1 before 5.12, which has no single call for it. An entry across the middle
/// makes both of them fail, and then nothing is unmapped.
fn unmap_halves(mut unmap: impl FnMut(IovaRange) -> KernelResult<u64>) -> KernelResult<u64> {
    let halves = [IovaRange::from_bounds(0, u64::MAX >> 1), IovaRange::from_bounds(1 << 63, u64::MAX)];
    let mut total = Ok(0u64);
    for range in halves.into_iter().flatten() {
        // After a failure the other half is unmapped all the same.
        let unmapped = unmap(range);
        total = total.and_then(|total| unmapped.map(|bytes| total.saturating_add(bytes)));
    }
    total
}

/// Something that holds entries for a device.
pub trait Backend: Send + Sync + fmt::Debug {
    /// For messages.
    fn name(&self) -> &'static str;

    /// What it can hold, now. Asked at open and before a transaction is refused because of it.
    fn limits(&self) -> Result<Limits>;

    /// How much may be pinned, now.
    fn memlock(&self) -> Memlock;

    /// What it can do. Does not change.
    fn capabilities(&self) -> Capabilities;

    /// Its dirty tracking, if it has any.
    fn dirty_tracking(&self) -> Option<&dyn DirtyTracking> {
        None
    }

    /// Maps one entry, or nothing. `object` is the object that it is a part of, if the caller named one.
    fn map(&self, mapping: &Mapping, object: Option<Object<'_>>) -> KernelResult<()>;

    /// Unmaps every entry inside `range`, which is not the whole space, and returns how many bytes those were.
    ///
    /// A range must not cut an entry: type1 then returns an error and unmaps nothing, iommufd reports 0 bytes but may
    /// have unmapped the entries before the one that is cut. So the caller must know how many bytes it expects. Any
    /// other number means that it does not know what is mapped.
    fn unmap(&self, range: IovaRange) -> KernelResult<u64>;

    /// Unmaps every entry of the container, including those that something else mapped, and returns how many bytes
    /// those were.
    fn unmap_all(&self) -> KernelResult<u64>;
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
