//! Addresses of a group that its devices cannot be given for a guest's memory.

use crate::finding::Finding;
use crate::host::Host;
use crate::size::{GIB, Size};

/// The first address of RAM above the hole for devices.
const ABOVE: u64 = 4 * GIB;
/// The RAM below the hole, at least.
const BELOW: u64 = 2 * GIB;
/// What AMD's processors reserve. QEMU 7.1 and newer put the RAM of a guest that is so large above it.
const HYPER_TRANSPORT: u64 = 0xfd_0000_0000;

/// A range of /sys/kernel/iommu_groups/N/reserved_regions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Region<'a> {
    start: u64,
    last: u64,
    kind: &'a str,
}

/// What prevents that a device of the group is passed through, or that a guest of that size has its RAM.
pub fn check(
    host: &Host,
    topic: &'static str,
    address: &str,
    group: &str,
    guest: Option<u64>,
) -> Option<Finding> {
    let text = host.read(&format!("sys/kernel/iommu_groups/{group}/reserved_regions"))?;
    let regions: Vec<Region> = text.lines().filter_map(region).collect();
    if let Some(Region { start, last, .. }) = regions.iter().find(|region| region.kind == "direct") {
        return Some(Finding::blocks(
            topic,
            format!(
                "{address}: the firmware keeps {start:#x} to {last:#x} of group {group} for itself (RMRR or IVMD), \
                 and the kernel refuses to pass such a device through"
            ),
            "turn off what uses it in the setup of the firmware (management or health reports of the slot), or use \
             another slot or device",
        ));
    }
    let guest = guest?;
    let ram =
        [(0, guest.clamp(1, BELOW) - 1), (ABOVE, ABOVE.saturating_add(guest.saturating_sub(BELOW)) - 1)];
    let meets = |region: &&Region| {
        let is_used =
            ram.iter().any(|(start, last)| region.start <= *last && *start <= region.last && start < last);
        is_used && region.kind != "direct-relaxable" && region.start != HYPER_TRANSPORT
    };
    let Region { start, last, kind } = regions.iter().find(meets)?;
    Some(Finding::blocks(
        topic,
        format!(
            "{address}: group {group} cannot map {start:#x} to {last:#x} ({kind}), where a guest of {} has RAM",
            Size(guest)
        ),
        format!("give the guest at most {}", Size(start.saturating_sub(ABOVE - BELOW))),
    ))
}

/// A line: first address, last address, kind.
fn region(line: &str) -> Option<Region<'_>> {
    let mut words = line.split_whitespace();
    let mut number = || u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok();
    let (start, last) = (number()?, number()?);
    Some(Region { start, last, kind: words.next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_the_kernel_writes_it() {
        let line = "0x00000000fee00000 0x00000000feefffff msi";
        assert_eq!(region(line), Some(Region { start: 0xfee0_0000, last: 0xfeef_ffff, kind: "msi" }));
        assert_eq!(region("0x1 0x2"), None);
        assert_eq!(region("none"), None);
    }
}
