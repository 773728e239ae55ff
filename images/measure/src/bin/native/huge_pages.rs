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

/// Bytes of 2 MiB hugetlb pages that are reserved and free.
pub fn set_aside() -> u64 {
    let pages = read("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    pages.trim().parse::<u64>().unwrap_or(0) << 21
}
