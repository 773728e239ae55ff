//! The command lines of the programs that ship, one module each.
//!
//! The programs parse with them, and `cargo xtask pages` makes the man pages and shell completions of them.

pub mod doctor;
pub mod run;
