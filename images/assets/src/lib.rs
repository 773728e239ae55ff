//! Builds the parts of the test machines: Debian's packages and sources, QEMU, kernels, initrds, and the library as
//! installed for users. A cache keeps products that take long to build. Modules import only from lower levels:
//!
//! | level | modules |
//! |---|---|
//! | 0 | [`paths`], [`interrupt`] |
//! | 1 | [`progress`] |
//! | 2 | [`outcome`], [`cache`] |
//! | 3 | [`packages`], [`debian`], [`once`], [`release`], [`target`] |
//! | 4 | [`sysroot`] |
//! | 5 | [`library`] |
//! | 6 | [`apparmor`], [`debian_packages`], [`kernel`], [`qemu`], [`image`], [`rustc`] |
//! | 7 | [`debian_host`] |

pub mod apparmor;
pub mod cache;
pub mod debian;
pub mod debian_host;
pub mod debian_packages;
pub mod image;
pub mod interrupt;
pub mod kernel;
pub mod kernel_tests;
pub mod library;
pub mod once;
pub mod outcome;
pub mod packages;
pub mod paths;
pub mod progress;
pub mod qemu;
pub mod release;
pub mod rustc;
pub mod sysroot;
pub mod target;
pub mod tree;
