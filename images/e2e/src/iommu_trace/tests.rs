use super::*;

/// Calls in L1: memory in two regions, of which the first is split and partly made read-only. In the end everything
/// is unmapped. KVM gets each change after VFIO.
const CALLS: &str = "\
    3b71 9 0 a0000 3 7f0000000000 0 0 0 100 10 7 0\n\
    3b71 9 100000 300000 3 7f0000100000 0 0 0 120 10 7 0\n\
    ae46 a 0 a0000 0 7f0000000000 0 0 0 140 1 7 0\n\
    ae46 a 100000 300000 0 7f0000100000 0 0 1 150 1 7 0\n\
    3b72 9 0 a0000 0 0 0 0 a0000 200 10 7 0\n\
    3b71 9 0 80000 3 7f0000000000 0 0 0 220 10 7 0\n\
    3b71 9 80000 20000 1 7f0000080000 0 0 0 240 10 7 0\n\
    3b71 9 fe800000 2000 3 7e0000000000 ffffffff 14 0 250 10 7 0\n\
    ae46 a 0 80000 0 7f0000000000 0 0 0 260 1 7 0\n\
    3b72 9 0 ffffffffffffffff 0 0 0 0 3a0000 300 10 7 0\n";

/// Attaches the device to its driver in L1, then to QEMU.
const HANDED_OUT: &str = "\
    virtio_iommu_switch_address_space Device 00:04.0 switching address space (iommu enabled=0)\n\
    virtio_iommu_attach domain=2 endpoint=32\n\
    virtio_iommu_switch_address_space Device 00:04.0 switching address space (iommu enabled=1)\n\
    virtio_iommu_attach domain=3 endpoint=240\n\
    virtio_iommu_map domain=2 virt_start=0xfffff000 virt_end=0xffffffff phys_start=0x1000 flags=2\n\
    virtio_iommu_unmap_done domain=2 virt_start=0xfffff000 virt_end=0xffffffff\n\
    virtio_iommu_attach domain=6 endpoint=32\n\
    virtio_iommu_detach_endpoint_from_domain domain=2 endpoint=32\n\
    virtio_iommu_switch_address_space Device 00:04.0 switching address space (iommu enabled=0)\n\
    virtio_iommu_put_domain Free domain=2\n\
    virtio_iommu_switch_address_space Device 00:04.0 switching address space (iommu enabled=1)\n";

/// L0's operations for [`CALLS`], one per physically contiguous piece, and one for another device among them.
const MAPPED: &str = "\
    virtio_iommu_map domain=6 virt_start=0x0 virt_end=0xfff phys_start=0x5000 flags=3\n\
    virtio_iommu_map domain=6 virt_start=0x1000 virt_end=0x9ffff phys_start=0x200000 flags=3\n\
    virtio_iommu_map domain=6 virt_start=0x100000 virt_end=0x1fffff phys_start=0x800000 flags=3\n\
    virtio_iommu_map domain=6 virt_start=0x200000 virt_end=0x3fffff phys_start=0xc00000 flags=3\n\
    virtio_iommu_map domain=3 virt_start=0x0 virt_end=0xfff phys_start=0x7000 flags=3\n\
    virtio_iommu_unmap_done domain=6 virt_start=0x0 virt_end=0xfff\n\
    virtio_iommu_unmap_done domain=6 virt_start=0x1000 virt_end=0x9ffff\n\
    virtio_iommu_map domain=6 virt_start=0x0 virt_end=0x7ffff phys_start=0x200000 flags=3\n\
    virtio_iommu_map domain=6 virt_start=0x80000 virt_end=0x9ffff phys_start=0x280000 flags=1\n";

const UNMAPPED: &str = "\
    virtio_iommu_unmap_done domain=6 virt_start=0x0 virt_end=0x7ffff\n\
    virtio_iommu_unmap_done domain=6 virt_start=0x80000 virt_end=0x9ffff\n\
    virtio_iommu_unmap_done domain=6 virt_start=0x100000 virt_end=0x1fffff\n\
    virtio_iommu_unmap_done domain=6 virt_start=0x200000 virt_end=0x3fffff\n";

/// Events after QEMU has exited.
const HANDED_BACK: &str = "\
    virtio_iommu_attach domain=2 endpoint=32\n\
    virtio_iommu_detach_endpoint_from_domain domain=6 endpoint=32\n\
    virtio_iommu_switch_address_space Device 00:04.0 switching address space (iommu enabled=0)\n\
    virtio_iommu_put_domain Free domain=6\n\
    virtio_iommu_switch_address_space Device 00:04.0 switching address space (iommu enabled=1)\n";

fn trace() -> String {
    format!("{HANDED_OUT}{MAPPED}{UNMAPPED}{HANDED_BACK}")
}

fn compared(calls: &str, trace: &str) -> Result<Seen> {
    compare(&witness::parse(calls).unwrap(), trace, event::endpoint("0000:00:04.0").unwrap())
}

/// Replaces `from`, which must occur once in the trace, by `to`. Returns the error of the comparison.
fn why(from: &str, to: &str) -> String {
    let trace = trace();
    assert_eq!(trace.matches(from).count(), 1, "{from}");
    compared(CALLS, &trace.replace(from, to)).unwrap_err().to_string()
}

#[test]
fn what_agrees_agrees() {
    let seen = compared(CALLS, &trace()).unwrap();
    let bytes = 0xa0000 + 0x300000 + 0xa0000;
    assert_eq!(seen, Seen { ioctls: 6, maps: 6, unmaps: 6, map_bytes: bytes, comparisons: 6, commits: 2 });
}

/// A line about QEMU's domain that is missing, repeated or swapped with the next one is an error.
#[test]
fn every_line_counts() {
    let trace = trace();
    let lines: Vec<&str> = trace.lines().collect();
    let word = |n: usize| lines.get(n).and_then(|line: &&str| line.split(' ').next());
    let mut broken = 0;
    for n in (0..lines.len()).filter(|n| lines[*n].contains("map") && lines[*n].contains("domain=6")) {
        let (mut without, mut twice, mut swapped) = (lines.clone(), lines.clone(), lines.clone());
        without.remove(n);
        twice.insert(n, lines[n]);
        swapped.swap(n, n + 1);
        // The kernel chooses the order within one ioctl.
        let in_another = word(n) != word(n + 1) && !lines[n + 1].contains("domain=3");
        let records = [Some(without), Some(twice), in_another.then_some(swapped)];
        for record in records.into_iter().flatten() {
            assert!(compared(CALLS, &record.join("\n")).is_err(), "{record:#?}");
            broken += 1;
        }
    }
    assert_eq!(broken, 2 * 12 + 3);
}

#[test]
fn a_missing_unmap_is_found() {
    let line = "virtio_iommu_unmap_done domain=6 virt_start=0x1000 virt_end=0x9ffff\n";
    assert!(why(line, "").contains("mapped [0x0, 0x7ffff] rw"), "{}", why(line, ""));
    // No operation follows the last unmap, so the detach must report the mapping.
    let line = "virtio_iommu_unmap_done domain=6 virt_start=0x200000 virt_end=0x3fffff\n";
    assert!(why(line, "").contains("left its domain with 1 mappings"), "{}", why(line, ""));
}

#[test]
fn a_stale_page_is_found() {
    // Unmaps all but one page of a mapping, which L0 itself never does.
    let found = why("unmap_done domain=6 virt_start=0x1000 ", "unmap_done domain=6 virt_start=0x2000 ");
    assert!(found.contains("unmapped [0x2000, 0x9ffff], mapped was None"), "{found}");
    // A page that is mapped again without an ioctl.
    let stale = "virtio_iommu_map domain=6 virt_start=0x0 virt_end=0xfff phys_start=0x5000 flags=3\n";
    let found = compared(CALLS, &format!("{HANDED_OUT}{MAPPED}{UNMAPPED}{stale}{HANDED_BACK}")).unwrap_err();
    assert!(found.to_string().contains("after the last ioctl L0 mapped [0x0, 0xfff] rw"), "{found}");
}

#[test]
fn an_extra_map_is_found() {
    let after = "virt_start=0x80000 virt_end=0x9ffff phys_start=0x280000 flags=1\n";
    let extra = "virtio_iommu_map domain=6 virt_start=0xa0000 virt_end=0xa0fff phys_start=0x0 flags=3\n";
    let found = why(after, &format!("{after}{extra}"));
    assert!(
        found.contains("L0 mapped [0xa0000, 0xa0fff] rw, with 0x3a0000 bytes to come of an unmap"),
        "{found}"
    );
    // A failed map must leave nothing mapped.
    let extra =
        "virtio_iommu_map domain=6 virt_start=0xfe800000 virt_end=0xfe800fff phys_start=0x0 flags=3\n";
    assert!(why(after, &format!("{after}{extra}")).contains("mapped [0xfe800000, 0xfe800fff]"));
    // The same range must not be mapped twice.
    let line = "virtio_iommu_map domain=6 virt_start=0x0 virt_end=0xfff phys_start=0x5000 flags=3\n";
    assert!(why(line, &format!("{line}{line}")).contains("over what was there"));
}

#[test]
fn the_wrong_order_is_found() {
    let (map, unmap) = (
        "virtio_iommu_map domain=6 virt_start=0x100000 virt_end=0x1fffff phys_start=0x800000 flags=3\n",
        "virtio_iommu_unmap_done domain=6 virt_start=0x0 virt_end=0xfff\n",
    );
    let trace = trace();
    let swapped = trace.replace(map, "?").replace(unmap, map).replace('?', unmap);
    let found = compared(CALLS, &swapped).unwrap_err().to_string();
    assert!(found.contains("L0 unmapped [0x0, 0xfff] rw, with 0x300000 bytes to come of a map"), "{found}");
    // Only calls that overlap in time have no order.
    let together = CALLS.replace(" 100 10 7 0", " 100 25 7 0");
    let first = "virtio_iommu_map domain=6 virt_start=0x1000 virt_end=0x9ffff phys_start=0x200000 flags=3\n";
    let swapped = trace.replace(first, "?").replace(map, first).replace('?', map);
    assert_eq!(compared(&together, &swapped).unwrap().comparisons, 5);
    assert!(compared(CALLS, &swapped).is_err());
}

#[test]
fn a_wrong_permission_is_found() {
    let found = why("phys_start=0x280000 flags=1", "phys_start=0x280000 flags=3");
    assert!(found.contains("only in L0's IOMMU: [0x0, 0x9ffff] rw"), "{found}");
    assert!(why("phys_start=0x280000 flags=1", "phys_start=0x280000 flags=2").contains("not to be read"));
}

#[test]
fn a_device_beside_the_iommu_is_found() {
    let (trace, freed) = (trace(), "Free domain=2\n");
    let (before, after) = trace.split_once(freed).unwrap();
    let (_, without_switch) = after.split_once('\n').unwrap();
    let bypass = format!("{before}{freed}{without_switch}");
    let found = compared(CALLS, &bypass).unwrap_err().to_string();
    assert!(found.contains("the device is not behind the IOMMU"), "{found}");
}

#[test]
fn an_end_too_early_is_found() {
    let found = compared(CALLS, &format!("{HANDED_OUT}{MAPPED}")).unwrap_err().to_string();
    assert!(found.contains("L0's record ends with 0x3a0000 bytes to come"), "{found}");
    assert!(compared(CALLS, "").is_err());
    assert!(compared("", &trace()).is_err());
    assert!(compared("", HANDED_OUT).unwrap_err().to_string().contains("nothing was mapped"));
}

/// With iommufd the device leaves its domain before anything is unmapped, and L0 drops all mappings.
#[test]
fn what_is_unmapped_after_leaving_needs_no_operation() {
    let unmap_all = "3b72 9 0 ffff";
    let calls = CALLS.replace(unmap_all, &format!("3b78 8 0 0 0 0 0 0 0 290 5 7 0\n{unmap_all}"));
    let left = format!("{HANDED_OUT}{MAPPED}{HANDED_BACK}");
    let seen = compared(&calls, &left).unwrap();
    assert_eq!((seen.maps, seen.unmaps, seen.comparisons), (6, 2, 6));
    let found = compared(CALLS, &left).unwrap_err().to_string();
    assert!(found.contains("left its domain with 4 mappings"), "{found}");
    assert!(compared(&calls, &format!("{HANDED_OUT}{MAPPED}")).is_err());
    // Unmapped before the detach.
    assert!(compared(&calls, &trace()).unwrap_err().to_string().contains("before the device was detached"));
}

/// The comparison resumes when the device is attached again.
#[test]
fn a_device_that_comes_back_is_compared_again() {
    let unmap_all = "3b72 9 0 ffff";
    let calls = CALLS.replace(unmap_all, &format!("3b78 8 0 0 0 0 0 0 0 290 5 7 0\n{unmap_all}"))
        + "3b77 8 0 0 0 0 0 0 0 320 5 7 0\n3b71 9 0 1000 3 7f0000000000 0 0 0 330 10 7 0\n";
    let end = "3b72 9 0 1000 0 0 0 0 1000 350 10 7 0\n";
    let again = "\
        virtio_iommu_attach domain=7 endpoint=32\n\
        virtio_iommu_detach_endpoint_from_domain domain=2 endpoint=32\n";
    let map = "virtio_iommu_map domain=7 virt_start=0x0 virt_end=0xfff phys_start=0x5000 flags=3\n";
    let unmap = "virtio_iommu_unmap_done domain=7 virt_start=0x0 virt_end=0xfff\n";
    let back = HANDED_BACK.replace("domain=6", "domain=7");
    let before = format!("{HANDED_OUT}{MAPPED}{HANDED_BACK}{again}");
    let with_end = calls.clone() + end;
    assert_eq!(compared(&with_end, &format!("{before}{map}{unmap}{back}")).unwrap().maps, 7);
    assert!(compared(&with_end, &format!("{before}{unmap}{back}")).is_err());
    assert!(compared(&with_end, &format!("{before}{map}{back}")).is_err(), "it left with a mapping");
    // If QEMU exits with a mapping left, the kernel unmaps it or frees the domain.
    for trace in [format!("{before}{map}{unmap}{back}"), format!("{before}{map}{back}")] {
        assert_eq!(compared(&calls, &trace).unwrap().maps, 7);
    }
    assert!(compared(&calls, &format!("{before}{map}")).is_err(), "it is still there");
    assert!(
        compared(&calls, &format!("{before}{map}{unmap}{map}{back}")).is_err(),
        "mapped without an ioctl"
    );
}

#[test]
fn a_line_that_is_not_understood_is_an_error() {
    assert!(event::parse("virtio_iommu_map domain=6 virt_start=0x0").is_err());
    assert!(
        event::parse("virtio_iommu_map domain=6 virt_start=0x1 virt_end=0x0 phys_start=0x0 flags=3").is_err()
    );
    assert!(event::parse("virtio_iommu_unknown domain=6").is_err());
    assert!(event::endpoint("4.0").is_err());
}
