//! What is mapped for DMA and how it gets there.
//!
//! The caller declares the regions a device shall reach; the engine keeps a table of the entries the kernel holds and, at
//! each commit, executes only the difference. Modules import downwards only:
//!
//! | floor | modules | may |
//! |---|---|---|
//! | 0 | [`addr`], [`region`], [`error`], [`limits`], [`log`], [`stats`] | compute |
//! | 1 | [`reconcile`] | compute: no I/O, no clock, no lock |
//! | 2 | [`sys`], [`object`], [`backend`], [`populate`], [`preflight`] | call the kernel |
//! | 3 | [`execute`] | run a plan |
//! | 4 | [`transaction`] | lock |

pub mod addr;
pub mod backend;
pub mod error;
pub mod execute;
pub mod limits;
pub mod log;
pub mod object;
pub mod populate;
pub mod preflight;
pub mod reconcile;
pub mod region;
pub mod stats;
pub mod sys;
pub mod transaction;

pub use error::{Errno, Error, Result};
pub use transaction::{Config, Engine, Info, Outcome};
