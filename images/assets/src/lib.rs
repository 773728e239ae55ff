//! What the test machines are made of, and the tools that make it: Debian's packages and sources, QEMU, kernels, initrds, the
//! library as users install it. A cache keeps what takes long. Modules import downwards only:
//!
//! | floor | modules |
//! |---|---|
//! | 0 | [`paths`], [`interrupt`] |
//! | 1 | [`progress`] |
//! | 2 | [`outcome`], [`cache`] |
//! | 3 | [`packages`], [`debian`], [`library`] |
//! | 4 | [`kernel`], [`qemu`], [`image`] |

pub mod cache;
pub mod debian;
pub mod image;
pub mod interrupt;
pub mod kernel;
pub mod library;
pub mod outcome;
pub mod packages;
pub mod paths;
pub mod progress;
pub mod qemu;
