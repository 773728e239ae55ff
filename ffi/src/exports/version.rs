//! The version of the library.

use std::ffi::{CStr, c_char};

use crate::abi::VFIO_FAST_ABI_VERSION;

/// Tells the version of the library that was loaded, as "MAJOR.MINOR.PATCH".
///
/// # Returns
/// The text, never NULL, valid as long as the library is loaded.
///
/// # Threads
/// Any.
#[unsafe(no_mangle)]
pub extern "C" fn vfio_fast_version() -> *const c_char {
    VERSION.as_ptr()
}

/// Tells the version of the binary interface of the library that was loaded; compare it with VFIO_FAST_ABI_VERSION.
///
/// # Returns
/// The number.
///
/// # Threads
/// Any.
#[unsafe(no_mangle)]
pub extern "C" fn vfio_fast_abi_version() -> u32 {
    VFIO_FAST_ABI_VERSION
}

/// Cargo's version, as C text.
const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(text) => text,
    Err(_) => panic!("a version has no NUL"),
};
