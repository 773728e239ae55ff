//! Limits of the kernel that a case sets: entries of a container, locked memory of the calling thread.

use std::fs;
use std::io::Error;

use super::cases::PAGE;

const ENTRY_LIMIT: &str = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";

/// Sets the entry limit of containers created from now on; restores it when dropped.
pub struct EntryLimit {
    before: String,
}

impl EntryLimit {
    pub fn new(entries: u64) -> Self {
        let before = fs::read_to_string(ENTRY_LIMIT).unwrap();
        fs::write(ENTRY_LIMIT, entries.to_string()).unwrap();
        Self { before }
    }
}

impl Drop for EntryLimit {
    fn drop(&mut self) {
        fs::write(ENTRY_LIMIT, &self.before).unwrap();
    }
}

/// Lets this thread lock only a few pages more than are locked now, and drops its capability to exceed the limit.
pub struct Memlock {
    before: libc::rlimit,
    capabilities: [Capabilities; 2],
}

/// `struct __user_cap_data_struct`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Capabilities {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `struct __user_cap_header_struct`, version 3, of the calling thread.
const HEADER: [u32; 2] = [0x2008_0522, 0];
const CAP_IPC_LOCK: u32 = 14;

impl Memlock {
    pub fn new(pages: u64) -> Self {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the struct is the one that the call fills.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut before) }, 0);
        let mut header = HEADER;
        let mut capabilities = [Capabilities::default(); 2];
        let (to, from) = (header.as_mut_ptr(), capabilities.as_mut_ptr());
        // SAFETY: header and data have the lengths that this version of the call expects.
        assert_eq!(unsafe { libc::syscall(libc::SYS_capget, to, from) }, 0);
        let mut fewer = capabilities;
        fewer[0].effective &= !(1 << CAP_IPC_LOCK);
        let limit = locked() + pages * PAGE;
        set(&libc::rlimit { rlim_cur: limit, rlim_max: before.rlim_max.max(limit) }, fewer);
        Self { before, capabilities }
    }
}

impl Drop for Memlock {
    fn drop(&mut self) {
        set(&self.before, self.capabilities);
    }
}

fn set(limit: &libc::rlimit, capabilities: [Capabilities; 2]) {
    // SAFETY: the struct is the one that the call reads.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, limit) }, 0);
    let mut header = HEADER;
    // SAFETY: header and data have the lengths that this version of the call expects.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), capabilities.as_ptr()) };
    assert_eq!(set, 0, "{}", Error::last_os_error());
}

/// VmLck in bytes.
pub fn locked() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}
