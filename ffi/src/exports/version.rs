//! The version of the library.

use std::ffi::{CStr, c_char};

use crate::abi::VFIO_FAST_ABI_VERSION;

/// Returns the version of the loaded library.
///
/// # Returns
/// "MAJOR.MINOR.PATCH", never NULL, valid as long as the library is loaded.
///
/// # Threads
/// Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn vfio_fast_version() -> *const c_char {
    VERSION.as_ptr()
}

/// Returns the version of the binary interface of the loaded library. Compare it with VFIO_FAST_ABI_VERSION.
///
/// # Returns
/// The number.
///
/// # Threads
/// Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn vfio_fast_abi_version() -> u32 {
    VFIO_FAST_ABI_VERSION
}

/// Cargo's version, as C text.
const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(text) => text,
    Err(_) => panic!("a version has no NUL"),
};
