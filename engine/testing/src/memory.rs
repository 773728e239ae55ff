//! Real memory at the host addresses of the objects of a [`Space`](super::Space), so that it can be faulted in and
//! mapped.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{UNIT, UNITS, hva_of};

/// The number of these bytes that are present.
pub fn resident(start: u64, bytes: u64) -> u64 {
    let mut pages = vec![0u8; usize::try_from(bytes / 4096).unwrap()];
    // SAFETY: the vector has a byte for every page, and no byte at the address is accessed.
    let result = unsafe {
        libc::mincore(start as *mut libc::c_void, usize::try_from(bytes).unwrap(), pages.as_mut_ptr())
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|&&page| page & 1 == 1).count() as u64 * 4096
}

/// Page table entries that map the shared zero page, and so need no memory. The kernel walks them when it lists the
/// mappings of a process, which makes the detection of device memory slow.
pub struct ZeroPages {
    address: *mut libc::c_void,
}

impl Default for ZeroPages {
    fn default() -> Self {
        Self::new()
    }
}

impl ZeroPages {
    const BYTES: usize = 1 << 30;

    pub fn new() -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: without MAP_FIXED a mapping replaces nothing.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), Self::BYTES, libc::PROT_READ, flags, -1, 0) };
        assert_ne!(address, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_POPULATE_READ] {
            // SAFETY: the range is this mapping's, and neither advice changes a byte of it. If it is refused, the
            // pages are missing, which only changes how long the kernel walks.
            let _ = unsafe { libc::madvise(address, Self::BYTES, advice) };
        }
        Self { address }
    }
}

impl Drop for ZeroPages {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's, and nothing refers to it.
        unsafe { libc::munmap(self.address, Self::BYTES) };
    }
}

/// Address and length of device memory that every process has: the kernel maps its time data as bare page frames.
pub fn time_data() -> (u64, u64) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.ends_with("[vvar]")).expect("a [vvar] mapping in this process");
    let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
    let [start, end] = [start, end].map(|hex| u64::from_str_radix(hex, 16).unwrap());
    (start, end - start)
}

/// The memory of every object, anonymous and private. Its addresses are fixed, so only one can exist at a time.
pub struct RealMemory {
    _alone: MutexGuard<'static, ()>,
}

impl Default for RealMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl RealMemory {
    const OBJECTS: std::ops::Range<u64> = 1..4;
    /// Twice the space, so that it contains a chunk boundary of populate, followed by a whole chunk.
    const BYTES: usize = (2 * UNITS * UNIT) as usize;

    pub fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        for object in Self::OBJECTS {
            let address = hva_of(object, 0) as *mut libc::c_void;
            let flags =
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: with MAP_FIXED_NOREPLACE a mapping replaces nothing.
            let got = unsafe { libc::mmap(address, Self::BYTES, protection, flags, -1, 0) };
            assert_eq!(got, address, "{}", std::io::Error::last_os_error());
        }
        Self { _alone: alone }
    }

    /// Changes the protection of one unit of an object.
    pub fn protect(&self, object: u64, unit: u64, protection: libc::c_int) {
        let address = hva_of(object, unit) as *mut libc::c_void;
        // SAFETY: the unit is inside one of the mappings, and no reference into them exists.
        assert_eq!(unsafe { libc::mprotect(address, UNIT as usize, protection) }, 0);
    }

    /// Disables huge pages, so that each page becomes present on its own.
    pub fn small_pages(&self) {
        for object in Self::OBJECTS {
            let address = hva_of(object, 0) as *mut libc::c_void;
            // SAFETY: the range is one of the mappings, and the advice changes no byte of it.
            // A kernel that has no huge pages refuses it.
            let _ = unsafe { libc::madvise(address, Self::BYTES, libc::MADV_NOHUGEPAGE) };
        }
    }

    /// Faults in the first bytes of each object.
    pub fn populate(&self, bytes: usize) {
        assert!(bytes <= Self::BYTES);
        for object in Self::OBJECTS {
            let address = hva_of(object, 0) as *mut libc::c_void;
            // SAFETY: the range is one of the mappings, and the advice changes no byte of it.
            let populated = unsafe { libc::madvise(address, bytes, libc::MADV_POPULATE_WRITE) };
            assert_eq!(populated, 0, "{}", std::io::Error::last_os_error());
        }
    }

    /// Discards all of the memory, so that it has to be faulted in again.
    pub fn cool(&self) {
        for object in Self::OBJECTS {
            let address = hva_of(object, 0) as *mut libc::c_void;
            // SAFETY: the range is one of the mappings, and no reference into them exists.
            assert_eq!(unsafe { libc::madvise(address, Self::BYTES, libc::MADV_DONTNEED) }, 0);
        }
    }
}

impl Drop for RealMemory {
    fn drop(&mut self) {
        for object in Self::OBJECTS {
            // SAFETY: the range is one of the mappings, and no reference into them exists.
            unsafe { libc::munmap(hva_of(object, 0) as *mut libc::c_void, Self::BYTES) };
        }
    }
}
