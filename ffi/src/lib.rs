//! The C interface of the vfio-fast engine: pointers, sizes, panics, errno. It has no policy, makes no kernel call, and
//! keeps no state other than the handle and each thread's last failure.
//!
//! C programs include `vfio_fast.h`, which is generated from [`abi`] and [`exports`] with their doc comments.
//!
//! | module | duty |
//! |---|---|
//! | [`abi`] | structs and constants |
//! | [`exports`] | functions, each of them one call of a guard |
//! | `guard`, `panic` | the only way in: errno, panics, poison, cancelled threads |
//! | `sized` | structs that begin with their size |
//! | `array`, `out` | arrays of numbers, and single values to return |
//! | `failure` | the last failure of each thread |
//! | `handle`, `convert`, `log` | conversion of C values to engine values and back |

pub mod abi;
mod array;
mod convert;
pub mod exports;
mod failure;
mod guard;
mod handle;
mod log;
mod out;
mod panic;
mod sized;
