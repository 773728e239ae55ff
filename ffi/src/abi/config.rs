//! The configuration of a handle.

use std::ffi::{c_char, c_void};

use super::size::sized32;

/// Receives the log messages of one handle.
///
/// - opaque: log_opaque of the configuration
/// - level: VFIO_FAST_LOG_*
/// - message: one line without a newline, valid only during the call. The wording may change in any release.
///
/// It is called only on a thread that is inside a vfio_fast_* function with this handle, never on a thread of the
/// library. It must return normally (no longjmp, no C++ exception). It must not call a function that takes a handle:
/// such a call returns -EDEADLK, whichever handle it names. It may call the other functions.
pub type vfio_fast_log_fn =
    Option<unsafe extern "C" fn(opaque: *mut c_void, level: u32, message: *const c_char)>;

/// Settings of VFIO_FAST_BACKEND_SIM, for tests. In every field except size, zero selects the default. Map and unmap
/// calls to the model are numbered together, from 1 on, since the handle was opened.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_sim_config {
    /// sizeof(struct vfio_fast_sim_config)
    pub size: u32,
    /// The errno, a positive number, that the call selected by fail_nth returns. Default: EIO.
    pub fail_errno: u32,
    /// Number of the call that fails. Default: none.
    pub fail_nth: u64,
    /// Number of the call that panics inside the library. Default: none.
    pub panic_nth: u64,
    /// Maximum number of kernel entries in the model. Default: 65535, as in the kernel.
    pub dma_avail: u64,
    /// Bytes that the process may lock, as if set with RLIMIT_MEMLOCK. Default: no limit.
    pub memlock_limit: u64,
    /// The driver that the model imitates: VFIO_FAST_BACKEND_TYPE1 or VFIO_FAST_BACKEND_IOMMUFD. Any other value is
    /// -EOPNOTSUPP. Default: type1.
    pub backend: u32,
    /// Number of bits of the addresses that the model translates, 33 to 64, except those of interrupts from 0xfee00000
    /// to 0xfeefffff, as VT-d has them. Any other value is -EOPNOTSUPP. Default: the model translates all addresses and
    /// reports no ranges.
    pub iova_bits: u32,
}

/// How to open a handle. Set it to zero, then set size, backend and the fields that the backend needs.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_config {
    /// sizeof(struct vfio_fast_config)
    pub size: u32,
    /// VFIO_FAST_CONFIG_*, or 0. Unknown bits are -EOPNOTSUPP.
    pub flags: u32,
    /// VFIO_FAST_BACKEND_*. Any other value is -EOPNOTSUPP.
    pub backend: u32,
    /// VFIO_FAST_BACKEND_TYPE1: the container. The library duplicates the descriptor; the caller may close its own
    /// once vfio_fast_open() has returned. Other backends ignore this field.
    pub container_fd: i32,
    /// Maximum size of a kernel entry in bytes: a power of two, at least 2 MiB. 0: 1 GiB. A commit uses a larger
    /// size if the container has too few entries left.
    pub entry_size: u64,
    /// Maximum number of threads that work during a commit. They fault memory in and, with VFIO_FAST_INFO_PARALLEL,
    /// map and unmap. There are never more than CPUs that they may run on (see cpu_set), because more threads are
    /// slower. 0: one for each of these CPUs, but not more than the cgroup's CPU quota.
    pub threads: u32,
    /// The most verbose level that is passed to log, VFIO_FAST_LOG_*. 0: none. Any other value is -EOPNOTSUPP.
    pub log_level: u32,
    /// Receives log messages. NULL: no messages.
    pub log: vfio_fast_log_fn,
    /// Passed to log unchanged. It must stay usable until vfio_fast_close() has returned. May be NULL.
    pub log_opaque: *mut c_void,
    /// VFIO_FAST_BACKEND_SIM: its settings, read only during vfio_fast_open(). NULL: the defaults. Must be NULL with
    /// other backends.
    pub sim: *const vfio_fast_sim_config,
    /// VFIO_FAST_BACKEND_IOMMUFD: an open file descriptor of /dev/iommu. The library duplicates it; the caller may
    /// close its own once vfio_fast_open() has returned. Other backends ignore this field.
    pub iommufd_fd: i32,
    /// VFIO_FAST_BACKEND_IOMMUFD: the IOAS to map in, as returned by IOMMU_IOAS_ALLOC. The caller destroys it after
    /// vfio_fast_close(). Other backends ignore this field.
    pub ioas_id: u32,
    /// Maximum number of kernel entries that one unmap call removes. 0: as many as the time of the calls allows, first
    /// 64, then more while calls take about a millisecond or less, and fewer (but at least 64) after a call of more
    /// than four. A call that removes more than one entry also removes at most 4 GiB: the kernel unpins every page, and
    /// other users of the container wait until the call ends. With VFIO_FAST_INFO_PARALLEL several threads share
    /// the calls, each for at most 1 GiB or one entry.
    pub max_unmap_entries: u32,
    /// Number of addresses in cuts.
    pub cut_count: u32,
    /// IOVAs at which kernel entries are always cut, in addition to the multiples of entry_size: multiples of the
    /// smallest IOMMU page, in any order, read only during vfio_fast_open(). May be NULL if cut_count is 0. Name an
    /// address if regions are often split and joined there: what is on the other side of the cut then stays mapped.
    /// An example is 1 MiB, below which the firmware of a PC has its shadow memory. A cut costs the superpage that
    /// contains it: with a cut at 1 MiB, the first 2 MiB take 512 entries of 4 KiB in the IOMMU's page table instead
    /// of one of 2 MiB, and the first 1 GiB cannot be one entry of 1 GiB. Exact regions are not cut.
    pub cuts: *const u64,
    /// CPUs that the library's threads run on, in the format of sched_setaffinity(2), read only during
    /// vfio_fast_open(). The calling thread is not moved. CPUs that the machine does not have are ignored. NULL: the
    /// CPUs of the process's main thread, or those of the calling thread if these are more.
    pub cpu_set: *const c_void,
    /// Size of cpu_set in bytes. Must be 0 if cpu_set is NULL.
    pub cpu_set_size: u64,
}

// The end of the last field of the first release: the minimum size of a caller's struct.
sized32!(vfio_fast_sim_config, 40);
sized32!(vfio_fast_config, 56);
