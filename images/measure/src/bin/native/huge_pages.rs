//! Checks which huge pages this machine provides.

use vfio_fast_protocol::bench::host::{SHMEM_THP, THP, chosen, read};
use vfio_fast_protocol::memory::MemoryKind;

/// The reason why this machine cannot provide that kind of memory, if it cannot.
pub fn refusal(memory: MemoryKind) -> Option<String> {
    let (knob, setting) = match memory {
        MemoryKind::AnonThp => (THP, chosen(THP)),
        MemoryKind::MemfdThp => (SHMEM_THP, chosen(SHMEM_THP)),
        _ => return None,
    };
    let refused = ["never", "deny", ""].contains(&setting.as_str());
    refused.then(|| format!("{knob} is [{setting}]"))
}

/// Bytes of hugetlb pages of that kind that are reserved and free; 0 for other memory.
pub fn set_aside(memory: MemoryKind) -> u64 {
    let Some(page) = memory.reserved_page() else { return 0 };
    let pages = read(&format!("/sys/kernel/mm/hugepages/hugepages-{}kB/free_hugepages", page >> 10));
    pages.trim().parse::<u64>().unwrap_or(0) * page
}
