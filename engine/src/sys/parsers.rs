//! The parsers of what the kernel writes, for a fuzzer (`engine/fuzz/src/parsers.rs`). Each function passes a text of any
//! content to parsers, and fails if they panic or return what no text can mean.

use super::type1::info;
use super::{cgroup, cpu, memlock, movable, smaps, vma};

/// The description of a container: the answer of VFIO_IOMMU_GET_INFO with its chain of capabilities.
pub fn container_info(bytes: &[u8]) {
    let Ok(info) = info::parse(bytes) else { return };
    assert!(info.iova_ranges.is_sorted_by_key(|range| range.start()));
    assert!(info.iova_ranges.iter().all(|range| range.start() <= range.last()));
    // Each capability and each range of its list takes bytes of its own.
    assert!(
        info.iova_ranges.len() <= bytes.len() / 16,
        "{} ranges in {} bytes",
        info.iova_ranges.len(),
        bytes.len()
    );
}

/// /proc/self/smaps, and whether the bytes from `start` to the inclusive `last` are device memory.
pub fn smaps(text: &[u8], start: u64, last: u64) {
    let device = is_device(text, start, last);
    let Ok(found) = smaps::parsed(text, start..last) else { panic!("a slice can be read") };
    assert!(found.iter().all(|mapping| start < mapping.range.end && mapping.range.start < last));
    // A part of device memory is device memory.
    let middle = start + (last - start) / 2;
    assert!(!device || is_device(text, middle, middle), "{middle:#x} of {start:#x} to {last:#x}");
}

/// Whether the bytes from `start` to the inclusive `last` are device memory according to /proc/self/smaps.
pub fn is_device(smaps: &[u8], start: u64, last: u64) -> bool {
    vma::all_device(smaps, start, last).expect("a slice can be read")
}

/// /proc/zoneinfo: the pages in ZONE_MOVABLE.
pub fn movable_pages(zoneinfo: &str) -> u64 {
    movable::movable_pages(zoneinfo)
}

/// /proc/meminfo, /proc/PID/status, `cpu.max` of a cgroup, and `cpulist` of a node.
pub fn small_files(text: &str) {
    movable::cma_kib(text);
    for name in ["VmLck:", "VmPin:", "MemAvailable:", "Uid:", ""] {
        assert_eq!(
            memlock::kilobytes(text, name) % 1024,
            if memlock::kilobytes(text, name) == u64::MAX { 1023 } else { 0 }
        );
        assert!(memlock::field(text, name).is_none_or(|value| text.contains(value)));
    }
    assert_ne!(cgroup::quota_of(text), Some(0));
    if let Some(numbers) = cpu::listed(text) {
        // No kernel has more CPUs.
        assert!(numbers.len() <= 1 << 20, "{} CPUs", numbers.len());
    }
}
