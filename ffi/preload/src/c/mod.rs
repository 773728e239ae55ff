//! The boundary to the program and to the C library.

mod entry;
pub mod process;
mod stack;
