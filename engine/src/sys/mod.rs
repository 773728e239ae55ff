//! The kernel: every system call of the engine, and all of its unsafe code.
//!
//! One noun, one file; each module that needs unsafe says so itself, and nothing above this module may.

pub(crate) mod bar;
pub(crate) mod dirty;
pub mod disposable;
pub mod hva;
pub(crate) mod ioctl;
pub(crate) mod iommufd;
pub(crate) mod madvise;
pub(crate) mod numa;
pub(crate) mod pagemap;
pub(crate) mod process;
pub(crate) mod procmap;
pub(crate) mod thread;
pub(crate) mod type1_info;
pub(crate) mod vma;
