//! Regions: memory at IOVAs that the caller wants devices to access.

use crate::addr::{HostVa, IovaRange};

/// A device's access. Reading is always allowed, because write-only mappings have no use here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum Perm {
    /// The device may read.
    Read,
    /// The device may read and write.
    ReadWrite,
}

impl Perm {
    /// Whether the device may write.
    pub fn is_writable(self) -> bool {
        self == Self::ReadWrite
    }
}

/// The kind of a region's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Ordinary memory with struct pages: faulted in before the map, counted as locked; a failure to map it fails the
    /// commit.
    Ram,
    /// Another device's memory (a BAR): never accessed and not counted. If it cannot be mapped, there is no
    /// peer-to-peer DMA.
    Device,
}

/// The identity of the memory object that a region is a part of (in QEMU: its RAMBlock). Two regions can be joined
/// into one kernel entry only if both have the same backing, because host addresses of different objects can be
/// adjacent by accident.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub struct Backing(pub u64);

impl Backing {
    /// An unknown object: the region is never joined with another.
    pub const UNKNOWN: Self = Self(0);
}

/// A contiguous range of memory that devices may access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// The IOVAs.
    pub range: IovaRange,
    /// Host address of the first byte.
    pub hva: HostVa,
    /// The device's access.
    pub perm: Perm,
    /// RAM or device memory.
    pub kind: Kind,
    /// The memory object that the region is a part of.
    pub backing: Backing,
    /// Kernel entries may cover this region and adjacent ones for which the same is true. When one of these is
    /// unmapped, devices cannot access the rest of the entry for a moment. Otherwise no entry covers more than this
    /// region. Ignored for exact regions and for device memory.
    pub join: bool,
    /// One kernel entry, neither joined with a neighbour nor cut. For memory that the caller will unmap in exactly
    /// these pieces (virtio-mem blocks, vIOMMU mappings).
    pub exact: bool,
}

impl Region {
    /// The host address at `iova`, which lies in this region.
    pub(crate) fn hva_at(&self, iova: u64) -> HostVa {
        debug_assert!(self.range.start() <= iova && iova <= self.range.last());
        // The region's end was checked when the region was accepted, so no byte inside it can wrap.
        HostVa::from_raw(self.hva.raw().wrapping_add(iova - self.range.start()))
    }

    /// The part of this region inside `range`, if any.
    pub(crate) fn clip(&self, range: IovaRange) -> Option<Self> {
        let part = self.range.intersection(range)?;
        Some(Self { range: part, hva: self.hva_at(part.start()), ..*self })
    }
}

/// The arguments of one map call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The IOVAs.
    pub range: IovaRange,
    /// Host address of the first byte.
    pub hva: HostVa,
    /// The device's access.
    pub perm: Perm,
}
