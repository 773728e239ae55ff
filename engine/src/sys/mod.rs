//! The kernel: every system call of the engine, and all of its unsafe code.

pub mod hva;
