//! What the device shall reach, and what a commit made of it.

use std::mem::size_of;

use crate::sized::{Sized32, sized32};

/// Memory the device shall reach.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_region {
    /// sizeof(struct vfio_fast_region)
    pub size: u32,
    /// VFIO_FAST_REGION_*, or 0. Unknown bits are -EOPNOTSUPP.
    pub flags: u32,
    /// First address as the device sees it. A multiple of the smallest IOMMU page (see iova_pgsizes in struct
    /// vfio_fast_info).
    pub iova: u64,
    /// Bytes, a multiple of the smallest IOMMU page, not 0. iova + length may be exactly 2^64 (that is 0 in a
    /// uint64_t) but not more.
    pub length: u64,
    /// Host virtual address of the first byte, a multiple of the smallest IOMMU page. The memory must stay mapped at
    /// this address until the region is unmapped; the library never frees it.
    pub hva: u64,
    /// Identity of the memory object behind the region, a number the caller chooses: neighbouring regions share
    /// kernel entries only if it is equal and not 0.
    pub backing: u64,
    /// VFIO_FAST_REGION_FD: what the memory is, borrowed until this call returns; a file of memory, or with
    /// VFIO_FAST_REGION_DEVICE the VFIO device whose BAR it is. Ignored without the flag.
    pub fd: i32,
    /// VFIO_FAST_REGION_FD and VFIO_FAST_REGION_DEVICE: VFIO's number of the BAR (VFIO_PCI_BAR0_REGION_INDEX and so
    /// on). Ignored otherwise.
    pub region_index: u32,
    /// VFIO_FAST_REGION_FD: where in the file or the BAR the region begins, in bytes, a multiple of the smallest IOMMU
    /// page. Ignored without the flag.
    pub fd_offset: u64,
}

/// Device addresses.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_range {
    /// sizeof(struct vfio_fast_range)
    pub size: u32,
    /// No flags exist yet: 0. Anything else is -EOPNOTSUPP.
    pub flags: u32,
    /// First address, a multiple of the smallest IOMMU page.
    pub iova: u64,
    /// Bytes, a multiple of the smallest IOMMU page, not 0. iova + length may be exactly 2^64 but not more.
    pub length: u64,
}

/// Pages of memory the device shall reach, or no longer: an array of device addresses and one of host addresses.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_pages {
    /// sizeof(struct vfio_fast_pages)
    pub size: u32,
    /// VFIO_FAST_REGION_WRITE, or 0. Anything else is -EOPNOTSUPP.
    pub flags: u32,
    /// How many pages. 0 is allowed and nothing to do; the arrays may then be NULL.
    pub count: u64,
    /// Where the device sees each page: multiples of the smallest IOMMU page (see iova_pgsizes in struct
    /// vfio_fast_info), which is also the size of each.
    pub iovas: *const u64,
    /// Host virtual address of each page, a multiple of the same. Mapping reads as many as count says, unmapping none.
    pub hvas: *const u64,
    /// Identity of the memory object behind the pages, as in struct vfio_fast_region. Unmapping does not look at it.
    pub backing: u64,
}

/// A range of device addresses, and a bitmap of its pages.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_dirty {
    /// sizeof(struct vfio_fast_dirty)
    pub size: u32,
    /// Must be 0. Anything else is -EOPNOTSUPP.
    pub flags: u32,
    /// First device address, a multiple of page_size.
    pub iova: u64,
    /// Bytes, a multiple of page_size.
    pub length: u64,
    /// Bytes of a page: the smallest of the IOMMU (see iova_pgsizes in struct vfio_fast_info).
    pub page_size: u64,
    /// A bit for each page. That of page n is bit n % 64 of word n / 64.
    pub bits: *mut u64,
    /// How many words there are.
    pub words: u64,
}

/// Memory of this process.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_memory {
    /// sizeof(struct vfio_fast_memory)
    pub size: u32,
    /// VFIO_FAST_MEMORY_*, or 0. Unknown bits are -EOPNOTSUPP.
    pub flags: u32,
    /// Host virtual address of the first byte, a multiple of the system's page.
    pub hva: u64,
    /// Bytes, a multiple of the system's page, not 0.
    pub length: u64,
}

/// What one commit did. Written only if the commit succeeded.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_outcome {
    /// sizeof(struct vfio_fast_outcome), set by the caller and left as it is
    pub size: u32,
    /// Device regions (VFIO_FAST_REGION_DEVICE) that could not be mapped in this commit: no peer-to-peer to them.
    /// They are not tried again until the caller unmaps and maps them.
    pub device_failures: u32,
    /// The first of them: its first device address. 0 if there is none.
    pub device_iova: u64,
    /// The first of them: its bytes. 0 if there is none.
    pub device_length: u64,
    /// The first of them: its host virtual address. 0 if there is none.
    pub device_hva: u64,
    /// The first of them: why, a negative errno. 0 if there is none.
    pub device_error: i32,
    /// Map calls that succeeded.
    pub map_calls: u32,
    /// Unmap calls that succeeded.
    pub unmap_calls: u32,
    /// Kernel entries the transaction touched and that were left in place, because they were right already.
    pub kept_entries: u32,
    /// Bytes mapped by the map calls.
    pub map_bytes: u64,
    /// Bytes unmapped by the unmap calls.
    pub unmap_bytes: u64,
    /// Bytes of the entries left in place.
    pub kept_bytes: u64,
    /// Duration of the commit in nanoseconds of wall time.
    pub ns: u64,
}

sized32!(vfio_fast_region, 40);
sized32!(vfio_fast_range, 24);
sized32!(vfio_fast_pages, 40);
sized32!(vfio_fast_dirty, 48);
sized32!(vfio_fast_memory, 24);
sized32!(vfio_fast_outcome, 80);
