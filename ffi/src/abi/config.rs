//! What a handle is opened with.

use std::ffi::{c_char, c_void};

use std::mem::size_of;

use crate::sized::{Sized32, sized32};

/// Receives the messages of one handle.
///
/// opaque:  the log_opaque of the configuration
/// level:   VFIO_FAST_LOG_*
/// message: one line without a newline, valid only during the call; the text may change in any release
///
/// It is called only on the thread that is inside a vfio_fast_* function of this handle, never on a thread of the
/// library. It must return normally (no longjmp, no C++ exception) and must not call a function that takes a handle:
/// such a call answers -EDEADLK, whichever handle it is. The other functions are allowed.
pub type vfio_fast_log_fn =
    Option<unsafe extern "C" fn(opaque: *mut c_void, level: u32, message: *const c_char)>;

/// Settings of VFIO_FAST_BACKEND_SIM, for tests. In every field but size, zero asks for the default.
/// "Calls" are the map and unmap calls the model receives, counted together from 1 since open.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_sim_config {
    /// sizeof(struct vfio_fast_sim_config)
    pub size: u32,
    /// The errno (a positive number) that the call chosen by fail_nth answers. Default: EIO.
    pub fail_errno: u32,
    /// Which call fails. Default: none.
    pub fail_nth: u64,
    /// Which call panics inside the library. Default: none.
    pub panic_nth: u64,
    /// How many entries the model holds at most. Default: 65535, like the kernel.
    pub dma_avail: u64,
    /// Bytes the process may lock, as if set with RLIMIT_MEMLOCK. Default: no limit.
    pub memlock_limit: u64,
    /// Whose rules the model keeps: VFIO_FAST_BACKEND_TYPE1 or VFIO_FAST_BACKEND_IOMMUFD. Anything else is -EOPNOTSUPP.
    /// Default: those of type1.
    pub backend: u32,
    /// Must be 0. Anything else is -EOPNOTSUPP.
    pub reserved: u32,
}

/// How to open a handle. Set it to zero, then fill in size, backend and what the backend needs.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct vfio_fast_config {
    /// sizeof(struct vfio_fast_config)
    pub size: u32,
    /// VFIO_FAST_CONFIG_*, or 0. Anything else is -EOPNOTSUPP.
    pub flags: u32,
    /// VFIO_FAST_BACKEND_*. Anything else is -EOPNOTSUPP.
    pub backend: u32,
    /// VFIO_FAST_BACKEND_TYPE1: the container, borrowed. The library duplicates it, the caller may close its own as
    /// soon as vfio_fast_open() has returned. Other backends ignore it.
    pub container_fd: i32,
    /// Bytes of the largest kernel entry: a power of two, at least 2 MiB. 0: 1 GiB. It is enlarged when the IOMMU has
    /// too few entries left for it.
    pub entry_size: u64,
    /// The most threads that work during a commit: they fault in memory and, with VFIO_FAST_INFO_PARALLEL, map and unmap.
    /// Not limited by the number of CPUs. 0: one for each CPU this process may use.
    pub threads: u32,
    /// The most verbose level delivered to log, VFIO_FAST_LOG_*. 0: none. Anything else is -EOPNOTSUPP.
    pub log_level: u32,
    /// Receives messages. NULL: none are made.
    pub log: vfio_fast_log_fn,
    /// Handed to log as it is. It must stay usable until vfio_fast_close() has returned. May be NULL.
    pub log_opaque: *mut c_void,
    /// VFIO_FAST_BACKEND_SIM: its settings, read before vfio_fast_open() returns. NULL: the defaults. With another
    /// backend it must be NULL.
    pub sim: *const vfio_fast_sim_config,
    /// VFIO_FAST_BACKEND_IOMMUFD: the iommufd, an opened /dev/iommu, borrowed. The library duplicates it, the caller may
    /// close its own as soon as vfio_fast_open() has returned. Other backends ignore it.
    pub iommufd_fd: i32,
    /// VFIO_FAST_BACKEND_IOMMUFD: the IOAS in it to map in, as IOMMU_IOAS_ALLOC named it. The caller destroys it, after
    /// vfio_fast_close(). Other backends ignore it.
    pub ioas_id: u32,
    /// The most kernel entries that one unmap call takes away. 0: 64. It never takes more than 4 GiB in more than one entry
    /// either: others wait for the container as long as a call lasts, and each page is unpinned. With
    /// VFIO_FAST_INFO_PARALLEL every call takes one entry.
    pub unmap_entries: u32,
    /// Must be 0. Anything else is -EOPNOTSUPP.
    pub reserved: u32,
}

// Offset of the last field of the first release, and its size: what a caller must at least have.
sized32!(vfio_fast_sim_config, 40);
sized32!(vfio_fast_config, 56);
