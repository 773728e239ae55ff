//! Code that the measuring programs `native` and `calls` share.
#![allow(unsafe_code, reason = "the memory that is measured is mapped by hand")]

pub mod container;
pub mod memory;
pub mod pins;
