//! The constants of the C interface. A literal with the suffix `u32` gets the suffix `u` in the header. The version
//! numbers have none, so that the C preprocessor can paste them into a string.

/// Major version of this header. Compare it with vfio_fast_version().
pub const VFIO_FAST_VERSION_MAJOR: u32 = 0;

/// Minor version of this header.
pub const VFIO_FAST_VERSION_MINOR: u32 = 1;

/// Patch version of this header.
pub const VFIO_FAST_VERSION_PATCH: u32 = 0;

// cbindgen does not evaluate env!(), so the numbers are repeated here and checked against Cargo.toml.
const _: () = {
    assert!(is(VFIO_FAST_VERSION_MAJOR, env!("CARGO_PKG_VERSION_MAJOR")), "take the number of Cargo.toml");
    assert!(is(VFIO_FAST_VERSION_MINOR, env!("CARGO_PKG_VERSION_MINOR")), "take the number of Cargo.toml");
    assert!(is(VFIO_FAST_VERSION_PATCH, env!("CARGO_PKG_VERSION_PATCH")), "take the number of Cargo.toml");
};

const fn is(number: u32, text: &str) -> bool {
    matches!(u32::from_str_radix(text, 10), Ok(parsed) if parsed == number)
}

/// Version of the binary interface: the exported functions, the layout of the released fields and the meaning of the
/// constants. A program that loads the library at run time compares it with vfio_fast_abi_version().
pub const VFIO_FAST_ABI_VERSION: u32 = 1u32;

/// Backend: a VFIO container. VFIO_SET_IOMMU(VFIO_TYPE1v2_IOMMU) has succeeded on its file descriptor.
pub const VFIO_FAST_BACKEND_TYPE1: u32 = 1u32;

/// Backend: an IOAS of an iommufd. Attach the device, or a hardware page table made from the IOAS, first: without one
/// the kernel only records mappings, and pins all of them on one thread when the first device is attached. Device
/// regions (VFIO_FAST_REGION_DEVICE) can be mapped only with VFIO_FAST_REGION_FD.
pub const VFIO_FAST_BACKEND_IOMMUFD: u32 = 2u32;

/// Backend FOR TESTS ONLY: an executable model of the type1v2 driver or of iommufd. It maps nothing, needs no file
/// descriptor and no privilege, and can be made to fail or to panic (struct vfio_fast_sim_config). The value is
/// 0x7e570001.
pub const VFIO_FAST_BACKEND_SIM: u32 = 0x7e57_0001u32;

/// Config flag: do not request huge pages (madvise(MADV_HUGEPAGE)) before RAM is faulted in. By default the library
/// requests them for writable regions of at least 2 MiB that are not completely present.
pub const VFIO_FAST_CONFIG_NO_HUGEPAGE: u32 = 1u32 << 0;

/// Log level: an error. The call that encounters it fails as well.
pub const VFIO_FAST_LOG_ERROR: u32 = 1u32;

/// Log level: the call succeeds, but something that the program may rely on does not work (peer-to-peer access to a
/// BAR).
pub const VFIO_FAST_LOG_WARN: u32 = 2u32;

/// Log level: information that an administrator may need once.
pub const VFIO_FAST_LOG_INFO: u32 = 3u32;

/// Log level: details for developers of this library.
pub const VFIO_FAST_LOG_DEBUG: u32 = 4u32;

/// Region flag: the device may write to the region. It may always read it.
pub const VFIO_FAST_REGION_WRITE: u32 = 1u32 << 0;

/// Region flag: device memory (a BAR of another device), not RAM. It is not faulted in and does not count against the
/// locked-memory limit, and RAM is mapped before it. If it cannot be mapped, or if RAM has used up the kernel entries,
/// a commit reports this in struct vfio_fast_outcome and does not fail. It does fail if the errno has another meaning,
/// such as -EEXIST (something else is mapped there), -ENOMEM, -EBADF, -EMFILE, -EBUSY or -EINTR.
/// Without the flag, the library recognises a region that is faulted in and turns out to be device memory, which costs
/// microseconds per kernel entry for a VFIO device on Linux 6.11 or later, and otherwise a read of /proc/self/smaps: a
/// millisecond or more. As long as a region with the same backing (not 0) is wanted, further ones need no such check.
pub const VFIO_FAST_REGION_DEVICE: u32 = 1u32 << 1;

/// Region flag: the region is exactly one kernel entry, never joined with a neighbour and never split. It can only be
/// unmapped as a whole. Unmapping and mapping it again in one transaction always reaches the kernel. Outside a
/// transaction, an exact region of less than 4 MiB of RAM is one kernel call: it is not faulted in before, and no huge
/// pages are requested for it.
pub const VFIO_FAST_REGION_EXACT: u32 = 1u32 << 2;

/// Region flag: fd, fd_offset and, for device memory, region_index identify the memory in addition to its address.
/// With them, iommufd can map files faster; it cannot map device memory without them. type1 ignores them. The region
/// needs a backing: all regions with one backing are parts of one file or BAR, and each byte of it has one host
/// virtual address.
///
/// RAM must be a shared mapping of the file, which may be a memfd or any file on tmpfs or hugetlbfs, and the mapping
/// must permit the process what the region permits the device. The library asks the kernel whether it is so (Linux
/// 6.11). If not, or if the kernel does not map the file (before 6.13 it maps none), the library maps the region by its
/// address.
///
/// Device memory is exported by the VFIO device as a dma-buf (Linux 6.19) and becomes one kernel entry, as if
/// VFIO_FAST_REGION_EXACT were set. It cannot be mapped while the device does not decode its memory, and the kernel
/// removes the mapping when decoding is turned off. Unmap the region when decoding is turned off, and map it again
/// when decoding is turned on.
pub const VFIO_FAST_REGION_FD: u32 = 1u32 << 3;

/// Region flag: kernel entries may cover this region and adjacent ones with the same flag, backing (not 0) and
/// permission that continue it in host memory. When a part of such an entry is unmapped, a device cannot access the
/// rest of it for a moment (see Access). Set it on regions that are parts of one memory object and that are
/// split and joined, as the sections of a RAM block are when a PC's firmware opens its shadow memory: what is still
/// wanted then stays mapped, whatever regions it is in. Without it, no kernel entry covers more than one region, and
/// unmapping the region never affects another one. Each region then takes at least one kernel entry, of which a type1
/// container has 65,535 (dma_avail). Ignored with VFIO_FAST_REGION_EXACT and VFIO_FAST_REGION_DEVICE.
pub const VFIO_FAST_REGION_JOIN: u32 = 1u32 << 4;

/// Memory flag: the memory is a shared mapping of a file (a memfd, tmpfs, hugetlbfs). Its pages are removed from the
/// file, for all of its users. Without this flag, the file keeps its contents.
pub const VFIO_FAST_MEMORY_SHARED: u32 = 1u32 << 0;

/// Cancel flag: what the job has mapped is unmapped, too.
pub const VFIO_FAST_CANCEL_UNMAP: u32 = 1u32 << 0;

/// Job: there was none yet.
pub const VFIO_FAST_JOB_NONE: u32 = 0u32;

/// Job: it works, or waits for another call or a transaction to end.
pub const VFIO_FAST_JOB_RUNNING: u32 = 1u32;

/// Job: it has mapped everything that was left to it and could be mapped.
pub const VFIO_FAST_JOB_DONE: u32 = 2u32;

/// Job: it has failed. vfio_fast_wait() returns the error.
pub const VFIO_FAST_JOB_FAILED: u32 = 3u32;

/// Job: it was cancelled.
pub const VFIO_FAST_JOB_CANCELLED: u32 = 4u32;

/// Info flag: the handle is poisoned. Functions that would change something return -ENOTRECOVERABLE (see Poison).
pub const VFIO_FAST_INFO_POISONED: u32 = 1u32 << 0;

/// Info flag: a transaction is open.
pub const VFIO_FAST_INFO_IN_TRANSACTION: u32 = 1u32 << 1;

/// Info flag: the threads of a commit map and unmap concurrently. Otherwise they only fault memory in, because the
/// kernel would serialise the calls.
pub const VFIO_FAST_INFO_PARALLEL: u32 = 1u32 << 2;

/// Info flag: the kernel charges the pinned memory of all processes of this user against RLIMIT_MEMLOCK. User space
/// cannot read that sum: memlock_used is only what this handle has mapped, and a commit that seems to fit may still
/// return -ENOMEM. Without this flag, memlock_used is the locked memory of this process (VmLck).
pub const VFIO_FAST_INFO_MEMLOCK_PER_USER: u32 = 1u32 << 3;

/// Number of elements of iova_list in struct vfio_fast_info.
pub const VFIO_FAST_IOVA_LIST: u32 = 32u32;

/// Superpages: only one page size of the IOMMU is known. iommufd reports no more.
pub const VFIO_FAST_SUPERPAGES_UNKNOWN: u32 = 0u32;

/// Superpages: a few sizes, one for each level of the page table, such as VT-d's 4 KiB, 2 MiB and 1 GiB. Memory that
/// is not contiguous over a whole large page, or not congruent to it (see congruent_2m_bytes in struct
/// vfio_fast_stats), is mapped with the next smaller size.
pub const VFIO_FAST_SUPERPAGES_COARSE: u32 = 1u32;

/// Superpages: every power of two, as in AMD-Vi's first page-table format. Any aligned, contiguous block is one page.
pub const VFIO_FAST_SUPERPAGES_FINE: u32 = 2u32;

/// Failed operation: none. No call of this thread has failed.
pub const VFIO_FAST_OP_NONE: u32 = 0u32;

/// Failed operation: opening the handle.
pub const VFIO_FAST_OP_OPEN: u32 = 1u32;

/// Failed operation: a check of arguments, of the state, or of the limits before a commit. The kernel was not asked
/// to map or unmap anything.
pub const VFIO_FAST_OP_CHECK: u32 = 2u32;

/// Failed operation: mapping.
pub const VFIO_FAST_OP_MAP: u32 = 3u32;

/// Failed operation: unmapping.
pub const VFIO_FAST_OP_UNMAP: u32 = 4u32;

/// Failed operation: querying what the kernel supports and how much of it is left.
pub const VFIO_FAST_OP_INFO: u32 = 5u32;

/// Failed operation: tracking or reading dirty pages.
pub const VFIO_FAST_OP_DIRTY: u32 = 6u32;

/// Failed operation: returning memory to the system.
pub const VFIO_FAST_OP_DISCARD: u32 = 7u32;
