//! Real memory where the objects of a [`Space`](super::Space) are, so that it can be faulted in and mapped.

use super::{UNIT, UNITS, hva_of};

/// The memory of every object, anonymous and private.
pub struct RealMemory;

impl Default for RealMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl RealMemory {
    const OBJECTS: std::ops::Range<u64> = 1..4;
    /// The space, and as far as an object's offset may be shifted.
    const BYTES: usize = ((UNITS + 4) * UNIT) as usize;

    pub fn new() -> Self {
        for object in Self::OBJECTS {
            let address = hva_of(object, 0) as *mut libc::c_void;
            let flags =
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: with MAP_FIXED_NOREPLACE a mapping replaces nothing.
            let got = unsafe { libc::mmap(address, Self::BYTES, protection, flags, -1, 0) };
            assert_eq!(got, address, "{}", std::io::Error::last_os_error());
        }
        Self
    }

    /// Takes away, or gives back, the memory of one unit of an object.
    pub fn protect(&self, object: u64, unit: u64, protection: libc::c_int) {
        let address = hva_of(object, unit) as *mut libc::c_void;
        // SAFETY: the unit is inside one of the mappings, which nobody holds a reference into.
        assert_eq!(unsafe { libc::mprotect(address, UNIT as usize, protection) }, 0);
    }

    /// Makes all of it cold again.
    pub fn cool(&self) {
        for object in Self::OBJECTS {
            let address = hva_of(object, 0) as *mut libc::c_void;
            // SAFETY: the range is one of the mappings, which nobody holds a reference into.
            assert_eq!(unsafe { libc::madvise(address, Self::BYTES, libc::MADV_DONTNEED) }, 0);
        }
    }
}

impl Drop for RealMemory {
    fn drop(&mut self) {
        for object in Self::OBJECTS {
            // SAFETY: the range is one of the mappings, which nobody holds a reference into.
            unsafe { libc::munmap(hva_of(object, 0) as *mut libc::c_void, Self::BYTES) };
        }
    }
}
