//! The structs and constants of the C interface, named as in the header.
//!
//! The doc comments are copied into the header, so they are written for C programmers: errno names, no Rust types.

#![allow(non_camel_case_types)] // these names are the C names

mod config;
mod constants;
mod region;
mod report;
pub(crate) mod size;

pub use config::{vfio_fast_config, vfio_fast_log_fn, vfio_fast_sim_config};
pub use constants::*;
pub use region::{
    vfio_fast_dirty, vfio_fast_entry, vfio_fast_memory, vfio_fast_outcome, vfio_fast_pages, vfio_fast_range,
    vfio_fast_region,
};
pub use report::{
    vfio_fast_failure, vfio_fast_info, vfio_fast_iova_range, vfio_fast_progress, vfio_fast_stats,
};
