//! Memory to map, to unmap or to discard, and the outcome of a commit.

use super::size::sized32;

/// A region of memory that the device may access.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_region {
    /// sizeof(struct vfio_fast_region)
    pub size: u32,
    /// VFIO_FAST_REGION_*, or 0. Unknown bits are -EOPNOTSUPP.
    pub flags: u32,
    /// First device address, a multiple of the smallest IOMMU page (see iova_pgsizes in struct vfio_fast_info).
    pub iova: u64,
    /// Length in bytes, a multiple of the smallest IOMMU page, not 0. iova + length may be exactly 2^64, which is 0
    /// in a uint64_t, but not more.
    pub length: u64,
    /// Host virtual address of the first byte, a multiple of the smallest IOMMU page. The memory must stay mapped at
    /// this address until the region is unmapped. The library never frees it.
    pub hva: u64,
    /// Identifies the memory object that the region is a part of, by a number that the caller chooses. 0: unknown. An
    /// object is RAM or device memory, as a whole.
    /// With VFIO_FAST_REGION_JOIN, adjacent regions share kernel entries only if their backing is equal and not 0.
    pub backing: u64,
    /// VFIO_FAST_REGION_FD: the file that the region maps or, with VFIO_FAST_REGION_DEVICE, the VFIO device that the
    /// BAR belongs to. The library duplicates it; the caller may close its own once the call has returned. Descriptors
    /// of one device are duplicates of one another. Ignored without the flag.
    pub fd: i32,
    /// VFIO_FAST_REGION_FD and VFIO_FAST_REGION_DEVICE: VFIO's index of the BAR (VFIO_PCI_BAR0_REGION_INDEX and so
    /// on). Ignored otherwise.
    pub region_index: u32,
    /// VFIO_FAST_REGION_FD: offset of the region in the file or the BAR, in bytes, a multiple of the smallest IOMMU
    /// page. Ignored without the flag.
    pub fd_offset: u64,
}

/// A range of device addresses.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_range {
    /// sizeof(struct vfio_fast_range)
    pub size: u32,
    /// Must be 0. Any other value is -EOPNOTSUPP.
    pub flags: u32,
    /// First device address, a multiple of the smallest IOMMU page.
    pub iova: u64,
    /// Length in bytes, a multiple of the smallest IOMMU page, not 0. iova + length may be exactly 2^64 but not more.
    pub length: u64,
}

/// Pages to map or to unmap: an array of device addresses and an array of host addresses.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_pages {
    /// sizeof(struct vfio_fast_pages)
    pub size: u32,
    /// VFIO_FAST_REGION_WRITE and VFIO_FAST_REGION_JOIN, or 0. Other bits are -EOPNOTSUPP.
    pub flags: u32,
    /// Number of pages. If it is 0, the call has no effect and the arrays may be NULL.
    pub count: u64,
    /// Device address of each page, a multiple of the smallest IOMMU page (see iova_pgsizes in struct
    /// vfio_fast_info), which is also the size of each page.
    pub iovas: *const u64,
    /// Host virtual address of each page, a multiple of the smallest IOMMU page. Ignored when unmapping.
    pub hvas: *const u64,
    /// Identifies the memory object that the pages are a part of, as in struct vfio_fast_region. Ignored when
    /// unmapping.
    pub backing: u64,
}

/// A range of device addresses and a bitmap of its pages.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_dirty {
    /// sizeof(struct vfio_fast_dirty)
    pub size: u32,
    /// Must be 0. Any other value is -EOPNOTSUPP.
    pub flags: u32,
    /// First device address, a multiple of page_size.
    pub iova: u64,
    /// Length in bytes, a multiple of page_size, not 0.
    pub length: u64,
    /// Bytes in a page, which must be the smallest IOMMU page (see iova_pgsizes in struct vfio_fast_info).
    pub page_size: u64,
    /// The bitmap, one bit for each page: page n is bit n % 64 of word n / 64.
    pub bits: *mut u64,
    /// Number of words in bits.
    pub words: u64,
}

/// A range of memory of this process.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_memory {
    /// sizeof(struct vfio_fast_memory)
    pub size: u32,
    /// VFIO_FAST_MEMORY_*, or 0. Unknown bits are -EOPNOTSUPP.
    pub flags: u32,
    /// Host virtual address of the first byte, a multiple of the system's page size.
    pub hva: u64,
    /// Length in bytes, a multiple of the system's page size, not 0.
    pub length: u64,
}

/// A kernel entry: an element of the list that one process sends to another one to hand its entries over. It does not
/// grow in later releases.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
#[repr(C)]
pub struct vfio_fast_entry {
    /// First device address.
    pub iova: u64,
    /// Length in bytes.
    pub length: u64,
    /// VFIO_FAST_REGION_WRITE, or 0. Unknown bits are -EOPNOTSUPP.
    pub flags: u64,
}

/// What one commit did.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_outcome {
    /// sizeof(struct vfio_fast_outcome), set by the caller and not changed
    pub size: u32,
    /// Number of device regions that could not be mapped: VFIO_FAST_REGION_DEVICE, or declared as RAM and found to be
    /// device memory. Peer-to-peer access to them does not work. They are not tried again until the caller unmaps and
    /// maps them.
    pub device_failures: u32,
    /// First device address of the first such region. A region that was declared as RAM comes before all others: if
    /// this one has VFIO_FAST_REGION_DEVICE, all of them have. 0 if there is none.
    pub device_iova: u64,
    /// Length of the first such region in bytes. 0 if there is none.
    pub device_length: u64,
    /// Host virtual address of the first such region. 0 if there is none.
    pub device_hva: u64,
    /// Negative errno of the map call for the first such region. 0 if there is none.
    pub device_error: i32,
    /// Number of map calls that succeeded.
    pub map_calls: u32,
    /// Number of unmap calls that succeeded.
    pub unmap_calls: u32,
    /// Number of kernel entries that the transaction touched but left in place because they were already right.
    pub kept_entries: u32,
    /// Bytes mapped by the map calls.
    pub map_bytes: u64,
    /// Bytes unmapped by the unmap calls.
    pub unmap_bytes: u64,
    /// Bytes in the entries left in place.
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
