//! Regions: memory at device addresses.

use std::os::fd::BorrowedFd;

use vfio_fast_engine::object::{ObjectKind, ObjectRef};
use vfio_fast_engine::region::{Backing, Kind, Perm};

/// Memory at addresses of a device (IOVAs), as it is passed to [`Engine::map`](crate::Engine::map) and
/// [`Transaction::map`](crate::Transaction::map).
///
/// IOVA, host address and length are bytes, and multiples of the smallest IOMMU page
/// ([`Engine::page_size`](crate::Engine::page_size), usually 4096).
///
/// ```
/// # use vfio_fast_dma::Region;
/// # let memory = std::ptr::without_provenance_mut(0x7f00_0000_0000);
/// // 1 GiB of a guest's memory from guest-physical address 4 GiB on.
/// let ram = Region::new(4 << 30, memory, 1 << 30);
/// // The guest's ROM.
/// let rom = Region::new(0xfffc_0000, memory, 256 << 10).read_only();
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Region<'fd> {
    pub(crate) iova: u64,
    pub(crate) host: u64,
    pub(crate) length: u64,
    pub(crate) perm: Perm,
    pub(crate) kind: Kind,
    pub(crate) backing: Backing,
    pub(crate) join: bool,
    pub(crate) exact: bool,
    pub(crate) object: Option<ObjectRef<'fd>>,
}

impl Region<'static> {
    /// `length` bytes of RAM from `host` on, at `iova`, for a device that reads and writes.
    ///
    /// Nothing is checked here, and nothing promised: whoever maps the region does that.
    pub fn new(iova: u64, host: *mut u8, length: u64) -> Self {
        Self {
            iova,
            // The device gets to the memory by this address, past the compiler.
            host: host.expose_provenance() as u64,
            length,
            perm: Perm::ReadWrite,
            kind: Kind::Ram,
            backing: Backing::UNKNOWN,
            join: false,
            exact: false,
            object: None,
        }
    }
}

impl<'fd> Region<'fd> {
    /// The device may only read.
    pub fn read_only(self) -> Self {
        Self { perm: Perm::Read, ..self }
    }

    /// The memory is that of another device (a BAR): never accessed, faulted in or counted as locked memory.
    ///
    /// A kernel that cannot map it only means that there is no peer-to-peer DMA to it: the commit succeeds, and
    /// [`Outcome::refused`](crate::Outcome::refused) names the region.
    pub fn device_memory(self) -> Self {
        Self { kind: Kind::Device, ..self }
    }

    /// One mapping of the kernel, never joined with a neighbour and never cut: it can only be unmapped as a whole. For
    /// memory that is unmapped in exactly these pieces, such as blocks of virtio-mem or the mappings of a vIOMMU.
    pub fn exact(self) -> Self {
        Self { exact: true, ..self }
    }

    /// The memory object that the region is a part of, as a number that the caller chooses; 0: unknown. Needed by
    /// [`Region::join`], [`Region::file`] and [`Region::bar`].
    pub fn backing(self, object: u64) -> Self {
        Self { backing: Backing(object), ..self }
    }

    /// Mappings of the kernel may cover this region together with adjacent ones of the same [`Region::backing`] that
    /// allow it too.
    ///
    /// For a memory map whose regions are split and merged again. The price: if one of them is unmapped, the device
    /// cannot access the rest of the kernel's mapping for a moment.
    pub fn join(self) -> Self {
        Self { join: true, ..self }
    }

    /// The region is mapped shared from `fd`, a memfd or a file of shmem or hugetlbfs, beginning at `offset` bytes. An
    /// iommufd maps it faster that way; other kernels ignore it.
    ///
    /// The descriptor is duplicated by the call that maps the region. All regions of one [`Region::backing`] are parts
    /// of one file, and each of its bytes has one host address.
    pub fn file(self, fd: BorrowedFd<'_>, offset: u64) -> Region<'_> {
        Region { object: Some(ObjectRef { fd: fd.into(), kind: ObjectKind::Memory, offset }), ..self }
    }

    /// The region is a part of the BAR with VFIO's number `region_index` of `device`, beginning at `offset` bytes. An
    /// iommufd maps BARs only that way. Implies [`Region::device_memory`] and [`Region::exact`].
    ///
    /// The descriptor is duplicated by the call that maps the region. All descriptors of one device are duplicates of
    /// one another.
    pub fn bar(self, device: BorrowedFd<'_>, region_index: u32, offset: u64) -> Region<'_> {
        let kind = ObjectKind::Bar { region_index };
        let object = Some(ObjectRef { fd: device.into(), kind, offset });
        Region { kind: Kind::Device, exact: true, object, ..self }
    }
}
