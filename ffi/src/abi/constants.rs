//! The numbers of the C interface. Literals carry `u32` where the header shall have its `u`; the version is plain, so that
//! programs can paste it into a text.

/// Version of this header, first number. Compare it with vfio_fast_version().
pub const VFIO_FAST_VERSION_MAJOR: u32 = 0;

/// Version of this header, second number.
pub const VFIO_FAST_VERSION_MINOR: u32 = 1;

/// Version of this header, third number.
pub const VFIO_FAST_VERSION_PATCH: u32 = 0;

// cbindgen does not evaluate env!(), so the numbers stand here; but Cargo.toml decides what they are.
const _: () = {
    assert!(is(VFIO_FAST_VERSION_MAJOR, env!("CARGO_PKG_VERSION_MAJOR")), "take the number of Cargo.toml");
    assert!(is(VFIO_FAST_VERSION_MINOR, env!("CARGO_PKG_VERSION_MINOR")), "take the number of Cargo.toml");
    assert!(is(VFIO_FAST_VERSION_PATCH, env!("CARGO_PKG_VERSION_PATCH")), "take the number of Cargo.toml");
};

const fn is(number: u32, text: &str) -> bool {
    matches!(u32::from_str_radix(text, 10), Ok(parsed) if parsed == number)
}

/// Version of the binary interface: the exported functions, the layout of the released fields, the meaning of the
/// constants. Compare it with vfio_fast_abi_version() when the library is loaded at run time.
pub const VFIO_FAST_ABI_VERSION: u32 = 1u32;

/// Backend: a VFIO container file descriptor on which VFIO_SET_IOMMU(VFIO_TYPE1v2_IOMMU) has succeeded.
pub const VFIO_FAST_BACKEND_TYPE1: u32 = 1u32;

/// Backend: an IOAS of an iommufd, to which the device, or a hardware page table made from the IOAS, is attached. The
/// device comes first: while none is attached, the kernel only notes what is mapped, and pins all of it on one thread
/// when the first one comes. Device regions (VFIO_FAST_REGION_DEVICE) can be mapped only with VFIO_FAST_REGION_FD.
pub const VFIO_FAST_BACKEND_IOMMUFD: u32 = 2u32;

/// Backend FOR TESTS ONLY: an executable model of the type1v2 driver, or of iommufd. It maps nothing, needs no file
/// descriptor and no privilege, and can be told to fail or to panic (struct vfio_fast_sim_config). The value is
/// 0x7e570001.
pub const VFIO_FAST_BACKEND_SIM: u32 = 0x7e57_0001u32;

/// Config flag: do not ask for huge pages (madvise(MADV_HUGEPAGE)) where RAM is faulted in. Without it the library does,
/// for writable regions of 2 MiB and more of which something is missing.
pub const VFIO_FAST_CONFIG_NO_HUGEPAGE: u32 = 1u32 << 0;

/// Superpages: only one page size of the IOMMU is known. iommufd tells no more.
pub const VFIO_FAST_SUPERPAGES_UNKNOWN: u32 = 0u32;

/// Superpages: a few sizes, each a level of the page table above the last, like VT-d's 4 KiB, 2 MiB and 1 GiB. Memory that is
/// not contiguous, or not congruent (congruent_2m_bytes in struct vfio_fast_stats), over a whole one falls to the next.
pub const VFIO_FAST_SUPERPAGES_COARSE: u32 = 1u32;

/// Superpages: every power of two, like AMD-Vi's first page-table format. Any aligned and contiguous piece is one page.
pub const VFIO_FAST_SUPERPAGES_FINE: u32 = 2u32;

/// Log level: something is broken and stays broken; the call that met it fails.
pub const VFIO_FAST_LOG_ERROR: u32 = 1u32;

/// Log level: the call succeeds, but something does not work that one may have counted on (peer-to-peer with a BAR).
pub const VFIO_FAST_LOG_WARN: u32 = 2u32;

/// Log level: what an administrator may want to know once.
pub const VFIO_FAST_LOG_INFO: u32 = 3u32;

/// Log level: for the people who work on this library.
pub const VFIO_FAST_LOG_DEBUG: u32 = 4u32;

/// Region flag: the device may write to it. Reading is always granted.
pub const VFIO_FAST_REGION_WRITE: u32 = 1u32 << 0;

/// Region flag: device memory (the BAR of another device), not RAM. Never populated, never counted against the
/// locked-memory limit; that it cannot be mapped is reported in struct vfio_fast_outcome and is no error.
pub const VFIO_FAST_REGION_DEVICE: u32 = 1u32 << 1;

/// Region flag: exactly one kernel entry, never joined with a neighbour and never cut. It can only be unmapped
/// whole; unmapping and mapping it again in one transaction always reaches the kernel.
pub const VFIO_FAST_REGION_EXACT: u32 = 1u32 << 2;

/// Region flag: fd, fd_offset and, for device memory, region_index say what the memory is besides an address. iommufd can
/// map files of memory faster that way, and device memory no other way; type1 has no use for it. Needs a backing: all
/// regions with one backing are parts of one file or BAR, and each byte of it has one host virtual address.
///
/// RAM must be a shared mapping of the file, which may be a memfd or any file on tmpfs or hugetlbfs. The library asks the
/// kernel whether it is (Linux 6.11) and maps by address if not, as it does where the kernel maps no files (before 6.13).
///
/// Device memory is exported by the VFIO device as a dma-buf (Linux 6.19) and becomes one kernel entry, as if
/// VFIO_FAST_REGION_EXACT were set. While the device does not decode its memory it cannot be mapped, and what is mapped of
/// it is taken away by the kernel: unmap the region when decoding is turned off, and map it when it is on again.
pub const VFIO_FAST_REGION_FD: u32 = 1u32 << 3;

/// Failed operation: none, no call of this thread has failed yet.
pub const VFIO_FAST_OP_NONE: u32 = 0u32;

/// Failed operation: opening or closing the handle.
pub const VFIO_FAST_OP_OPEN: u32 = 1u32;

/// Failed operation: a check of arguments, of the state, or of the limits before a commit. The kernel was not asked
/// to map or unmap anything.
pub const VFIO_FAST_OP_CHECK: u32 = 2u32;

/// Failed operation: mapping.
pub const VFIO_FAST_OP_MAP: u32 = 3u32;

/// Failed operation: unmapping.
pub const VFIO_FAST_OP_UNMAP: u32 = 4u32;

/// Failed operation: asking the kernel what it supports and how much of it is left.
pub const VFIO_FAST_OP_INFO: u32 = 5u32;

/// Failed operation: tracking dirty pages, or asking which they are.
pub const VFIO_FAST_OP_DIRTY: u32 = 6u32;

/// Failed operation: giving memory back.
pub const VFIO_FAST_OP_DISCARD: u32 = 7u32;

/// Memory flag: the memory is a shared mapping of a file of memory (a memfd, tmpfs, hugetlbfs), and its pages go from the
/// file, for everybody who has it. Without the flag what the file has stays.
pub const VFIO_FAST_MEMORY_SHARED: u32 = 1u32 << 0;

/// Info flag: the handle is poisoned. The library no longer knows what is mapped (an undo failed, or the library
/// itself did); every function that would change something answers -ENOTRECOVERABLE.
pub const VFIO_FAST_INFO_POISONED: u32 = 1u32 << 0;

/// Info flag: a transaction is open, vfio_fast_begin() was called and neither commit nor abort yet.
pub const VFIO_FAST_INFO_IN_TRANSACTION: u32 = 1u32 << 1;

/// Info flag: the threads of a commit map and unmap at the same time. Otherwise they only fault memory in, because the
/// kernel would let one call wait for the other.
pub const VFIO_FAST_INFO_PARALLEL: u32 = 1u32 << 2;

/// Info flag: the kernel adds up the pinned memory of all processes of this user and holds the sum against
/// RLIMIT_MEMLOCK. Nothing shows that sum: memlock_used is the part of it that this handle has mapped, and a commit that
/// looks as if it would fit may still answer -ENOMEM. Otherwise it is this process's locked memory (VmLck).
pub const VFIO_FAST_INFO_MEMLOCK_OF_USER: u32 = 1u32 << 3;
