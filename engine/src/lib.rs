//! Keeps the DMA mappings of a container in agreement with the regions that a caller declares.
//!
//! The caller declares the regions that devices may access. The engine keeps a table of the entries that the kernel
//! holds, and each commit makes only the map and unmap calls that are needed. A module imports only from the floors
//! below its own:
//!
//! | floor | modules | what they do |
//! |---|---|---|
//! | 8 | [`transaction`] | take the lock; plan, execute, roll back, count |
//! | 7 | [`explain`] | find out why the kernel refused a call |
//! | 6 | [`execute`] | run a plan against a backend |
//! | 5 | [`preflight`] | refuse a plan that the kernel would refuse half-way |
//! | 4 | [`backend`] | map and unmap: type1, iommufd, and a model of both |
//! | 3 | [`object`], [`populate`] | keep descriptors; fault memory in |
//! | 2 | `sys` | call the kernel; all unsafe code is here |
//! | 1 | [`reconcile`] | compute: no I/O, no clock, no lock |
//! | 0 | [`addr`], [`region`], [`error`], [`limits`], [`log`], [`stats`], [`timeline`], `sync` | values, locks, messages |

pub mod addr;
pub mod backend;
pub mod error;
pub mod execute;
pub mod explain;
pub mod limits;
pub mod log;
pub mod object;
pub mod populate;
pub mod preflight;
pub mod reconcile;
pub mod region;
pub mod stats;
mod sync;
mod sys;
pub mod timeline;
pub mod transaction;

pub use error::{Errno, Error, Result};
#[cfg(vfio_fast_interleavings)]
pub use sync::NO_THREADS;
pub use sys::cancel::Deferred;
pub use sys::cpu::CpuSet;
pub use sys::discard::{DiscardMode, DiscardRange, discard_range};
pub use sys::fd::Descriptor;
pub use sys::hva::host_va;
#[cfg(vfio_fast_fuzzing)]
pub use sys::parsers;
pub use transaction::{Config, Engine, Info, Outcome, Phase, Progress};
