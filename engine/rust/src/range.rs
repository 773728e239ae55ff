//! Ranges of device addresses: inclusive, because one can end at the end of the address space.

use std::ops::RangeInclusive;

use vfio_fast_engine::Errno;
use vfio_fast_engine::addr::{Iova, IovaRange};
use vfio_fast_engine::error::{Error, ErrorKind, Result};

/// The range of `length` bytes from `iova` on, if there is one.
pub(crate) fn range(iova: u64, length: u64) -> Result<IovaRange> {
    IovaRange::new(Iova(iova), length).ok_or_else(|| Error::check(Errno::EINVAL, ErrorKind::BadRange))
}

/// The range as callers see it.
pub(crate) fn inclusive(range: IovaRange) -> RangeInclusive<u64> {
    range.start()..=range.last()
}
