//! What the caller wants a device to reach: regions of memory at IOVAs.

use crate::addr::{HostVa, IovaRange};

/// What a device may do. Reading is always allowed: VFIO has no write-only mappings worth having.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum Perm {
    /// The device may read.
    Read,
    /// The device may read and write.
    ReadWrite,
}

impl Perm {
    /// Whether the device may write.
    pub(crate) fn is_writable(self) -> bool {
        self == Self::ReadWrite
    }
}

/// What kind of memory a region is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Ordinary memory with struct pages: faulted in before the map, counted against memlock, fatal if it cannot be
    /// mapped.
    Ram,
    /// Another device's memory (a BAR): never touched, not counted, and "no peer-to-peer" if it cannot be mapped.
    Device,
}

/// The identity of the memory object that a region is a part of (in QEMU: its RAMBlock). Two regions can be joined into
/// one kernel entry only if both name the same object: host addresses of different objects can be adjacent by accident,
/// and what is joined by accident would have to be cut when one of them goes away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub struct Backing(pub u64);

impl Backing {
    /// Nothing is known of the object: the region is joined with nothing.
    pub const UNKNOWN: Self = Self(0);
}

/// A contiguous range of memory that devices may access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Where the device sees it.
    pub range: IovaRange,
    /// Host address of the first byte.
    pub hva: HostVa,
    /// What the device may do.
    pub perm: Perm,
    /// RAM or device memory.
    pub kind: Kind,
    /// The memory object it is a part of.
    pub backing: Backing,
    /// One kernel entry, neither joined with a neighbour nor cut: for what the caller will take away in exactly these
    /// pieces (virtio-mem blocks, vIOMMU mappings).
    pub exact: bool,
}

impl Region {
    /// The host address of the byte the device sees at `iova`, which lies in this region.
    pub(crate) fn hva_at(&self, iova: u64) -> HostVa {
        debug_assert!(self.range.start() <= iova && iova <= self.range.last());
        // The region's own end was checked when it was accepted, so no byte inside it can wrap.
        HostVa::from_raw(self.hva.raw().wrapping_add(iova - self.range.start()))
    }

    /// The part of this region inside `range`, if any.
    pub(crate) fn clip(&self, range: IovaRange) -> Option<Self> {
        let part = self.range.intersection(range)?;
        Some(Self { range: part, hva: self.hva_at(part.start()), ..*self })
    }
}

/// One entry to be put into the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Where the device sees it.
    pub range: IovaRange,
    /// Host address of the first byte.
    pub hva: HostVa,
    /// What the device may do.
    pub perm: Perm,
}
