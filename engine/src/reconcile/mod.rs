//! The difference between what is wanted and what is mapped, as a plan of map and unmap calls.
//!
//! Nothing here does I/O, reads a clock or takes a lock.

pub mod backlog;
pub mod dirty_pages;
pub mod grid;
pub mod plan;
mod range_map;
pub mod runs;
pub mod table;
pub mod wanted;
