//! The kernel, and what its version gives the library.

use crate::ask::Ask;
use crate::finding::Finding;
use crate::host::Host;

const TOPIC: &str = "kernel";

/// The versions from which on the library can do something, as the README lists them.
const FEATURES: [((u32, u32), &str); 8] = [
    ((5, 8), "tracking of dirty pages with type1"),
    ((5, 12), "closing a type1 container in one call"),
    ((5, 14), "faulting memory in on all CPUs (MADV_POPULATE_WRITE)"),
    ((6, 7), "finding present memory fast (PAGEMAP_SCAN)"),
    ((6, 11), "recognising file systems that are too small (PROCMAP_QUERY)"),
    ((6, 12), "fast start with ZONE_MOVABLE or CMA (pins by io_uring)"),
    ((6, 13), "mapping files of memory with iommufd (IOMMU_IOAS_MAP_FILE)"),
    ((6, 19), "peer-to-peer DMA to BARs with iommufd (dma-bufs)"),
];

pub fn check(host: &Host, _: &Ask) -> Vec<Finding> {
    let release = host.read("proc/sys/kernel/osrelease").unwrap_or_default();
    if host.kernel().is_none() {
        let what = "the version of the kernel is not known: /proc/sys/kernel/osrelease cannot be read";
        return vec![Finding::better(TOPIC, what, "mount -t proc proc /proc")];
    }
    let missing: Vec<_> = FEATURES.iter().filter(|(version, _)| !host.is_at_least(*version)).collect();
    let Some((newest, _)) = missing.last() else {
        return vec![Finding::fine(TOPIC, format!("Linux {release}: has all that the library uses"))];
    };
    let list: Vec<_> =
        missing.iter().map(|((major, minor), what)| format!("{what}: {major}.{minor}")).collect();
    let what = format!("Linux {release} lacks, unless it was backported: {}", list.join("; "));
    let fix =
        format!("install Linux {}.{} or newer; everything else works with this one", newest.0, newest.1);
    // What only iommufd has is no loss to the usual guest, with type1.
    let only_iommufd = missing.iter().all(|(version, _)| *version >= (6, 13));
    if only_iommufd {
        return vec![Finding::fine(
            TOPIC,
            format!("Linux {release}; only with a newer kernel: {}", list.join("; ")),
        )];
    }
    vec![Finding::better(TOPIC, what, fix)]
}
