//! The kernel: every system call of the engine, and all of its unsafe code.
//!
//! Each module that needs unsafe code allows it for itself; no module above this one may do so.

pub mod cancel;
pub(crate) mod cgroup;
pub mod cpu;
pub mod discard;
pub(crate) mod dma_buf;
pub(crate) mod eventfd;
pub mod fd;
pub(crate) mod file_system;
pub mod hva;
pub(crate) mod ioctl;
pub(crate) mod iommufd;
pub(crate) mod madvise;
pub(crate) mod memlock;
pub(crate) mod mincore;
pub(crate) mod movable;
pub(crate) mod numa;
pub(crate) mod page;
pub(crate) mod pagemap;
#[cfg(vfio_fast_fuzzing)]
pub mod parsers;
pub(crate) mod placement;
pub(crate) mod proc;
pub(crate) mod procmap;
pub(crate) mod smaps;
pub(crate) mod thread;
pub(crate) mod type1;
pub(crate) mod uring;
pub(crate) mod vma;
