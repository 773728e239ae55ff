//! The boundary to the program and to the C library.

mod cancel;
mod entry;
pub mod process;
