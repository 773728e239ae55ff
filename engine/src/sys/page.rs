//! The page of this machine's processors.
#![allow(unsafe_code)]

/// Bytes of a base page of the kernel: 4 KiB on x86, and 4, 16 or 64 KiB on arm64. This makes no system call.
pub(crate) fn base_page() -> u64 {
    // SAFETY: sysconf reads and writes no memory of this program, for any argument.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_power_of_two() {
        assert!(base_page().is_power_of_two() && base_page() >= 4096);
        assert!(cfg!(not(target_arch = "x86_64")) || base_page() == 4096);
    }
}
