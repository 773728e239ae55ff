//! What is mapped for DMA and how it gets there.
//!
//! The caller declares the regions a device shall reach; the engine keeps a table of the entries the kernel holds and, at
//! each commit, executes only the difference.

pub mod addr;
pub mod backend;
pub mod error;
pub mod populate;
pub mod region;
pub mod sys;
