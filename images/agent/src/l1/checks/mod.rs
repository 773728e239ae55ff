//! Checks that more than one scenario makes, and what they are made of.

pub mod by_descriptor;
pub mod count;
pub mod cpr;
pub mod dirty_bitmap;
pub mod exit;
pub mod exit_calls;
pub mod mappings;
pub mod p2p_warning;
pub mod preloaded;
pub mod sandbox;
pub mod timeline;
pub mod viommu_events;
