//! The IOMMU: whether there is one, what it translates, and whether it remaps interrupts.

use crate::ask::Ask;
use crate::finding::Finding;
use crate::host::Host;
use crate::size::{GIB, Size};

const TOPIC: &str = "iommu";

/// Where the kernel parameters live on most distributions.
const PARAMETERS: &str =
    "of the kernel (GRUB_CMDLINE_LINUX in /etc/default/grub), run update-grub, and reboot";

/// What the addresses of a PC's guest need above the size of its RAM: the hole for devices below 4 GiB.
const HOLE: u64 = 2 * GIB;

/// What the units of the host have in common.
struct Translation {
    pages: &'static str,
    bits: u64,
}

pub fn check(host: &Host, ask: &Ask) -> Vec<Finding> {
    let groups = host.list("sys/kernel/iommu_groups").len();
    if groups == 0 {
        let (why, fix) = why_none(host);
        return vec![Finding::blocks(
            TOPIC,
            format!("no IOMMU groups, so no device can be passed through: {why}"),
            fix,
        )];
    }
    let units = host.list("sys/class/iommu");
    let of = |prefix: &str| units.iter().filter(|unit| unit.starts_with(prefix)).count();
    let names = [
        ("dmar", "VT-d"),
        ("ivhd", "AMD-Vi"),
        ("smmu3.", "SMMUv3"),
        ("smmu.", "SMMU"),
        ("virtio", "virtio-iommu"),
    ];
    let kind = names.into_iter().find(|(prefix, _)| of(prefix) > 0).map_or("an IOMMU", |(_, name)| name);
    let translation = intel(host, &units).or_else(|| amd(host, &units));
    let plural = |number: usize, one: &str| format!("{number} {one}{}", if number == 1 { "" } else { "s" });
    let mut what = format!("{kind}: {}, {}", plural(units.len(), "unit"), plural(groups, "group"));
    if let Some(Translation { pages, bits }) = translation {
        what += &format!("; pages of {pages}; {bits}-bit addresses");
    }
    let mut findings = vec![match translation {
        Some(Translation { pages: "4 KiB", .. }) => Finding::better(
            TOPIC,
            format!("{what}: without larger pages, a map takes far longer"),
            format!("remove intel_iommu=sp_off from the parameters {PARAMETERS}, if it is there"),
        ),
        _ => Finding::fine(TOPIC, what),
    }];
    findings
        .extend(ask.guest.zip(translation).and_then(|(guest, translation)| width(guest, translation.bits)));
    findings.extend(interrupts(host));
    findings
}

/// Why there is no IOMMU, and what to do.
fn why_none(host: &Host) -> (String, String) {
    let line = host.command_line();
    let off = ["iommu=off", "intel_iommu=off", "amd_iommu=off"];
    if let Some(word) = line.iter().find(|word| off.contains(&word.as_str())) {
        return (
            format!("{word} is on the kernel's command line"),
            format!("remove {word} from the parameters {PARAMETERS}"),
        );
    }
    let table = |name: &str| host.has(&format!("sys/firmware/acpi/tables/{name}"));
    if table("DMAR") {
        let on = line.iter().any(|word| word.starts_with("intel_iommu=on"));
        return if on {
            (
                "the firmware has VT-d and intel_iommu=on is set, but the kernel does not use it".into(),
                "dmesg | grep -i -e dmar -e iommu".into(),
            )
        } else {
            (
                "the firmware has VT-d, but the kernel does not use it".into(),
                format!("add intel_iommu=on to the parameters {PARAMETERS}"),
            )
        };
    }
    if table("IVRS") {
        return (
            "the firmware has AMD-Vi, but the kernel does not use it".into(),
            "dmesg | grep -i -e amd-vi -e ivrs".into(),
        );
    }
    if table("IORT") && host.is_arm() {
        return (
            "the firmware describes the interrupts or the SMMU of devices (IORT), but the kernel uses no SMMU".into(),
            "dmesg | grep -i -e smmu -e iort".into(),
        );
    }
    if host.is_virtual_machine() {
        return (
            "this is a virtual machine without one".into(),
            "give the machine a virtual IOMMU; with QEMU:\n\
             -machine q35,kernel-irqchip=split \\\n\
             -device intel-iommu,intremap=on,caching-mode=on"
                .into(),
        );
    }
    if host.is_arm() {
        return ("the firmware offers none".into(), "enable the SMMU in the setup of the firmware".into());
    }
    (
        "the firmware offers none".into(),
        "enable VT-d (Intel) or AMD-Vi (AMD, \"IOMMU\") in the setup of the firmware".into(),
    )
}

/// VT-d: what all units have, from their capability registers.
fn intel(host: &Host, units: &[String]) -> Option<Translation> {
    let registers =
        units.iter().filter_map(|unit| host.read(&format!("sys/class/iommu/{unit}/intel-iommu/cap")));
    let registers = registers.filter_map(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok());
    registers.map(|cap| (cap >> 34 & 3, intel_bits(cap))).reduce(|a, b| (a.0 & b.0, a.1.min(b.1))).map(
        |(large, bits)| {
            let pages = match large {
                3 => "4 KiB, 2 MiB and 1 GiB",
                1 => "4 KiB and 2 MiB",
                _ => "4 KiB",
            };
            Translation { pages, bits }
        },
    )
}

/// The address bits of a VT-d unit: the most that its page tables (SAGAW) and its addresses (MGAW) have.
fn intel_bits(cap: u64) -> u64 {
    let tables = match cap >> 8 & 0x1f {
        levels if levels & 8 != 0 => 57,
        levels if levels & 4 != 0 => 48,
        _ => 39,
    };
    ((cap >> 16 & 0x3f) + 1).min(tables)
}

/// AMD-Vi: its page tables hold any power of two; their levels are in the extended features (HATS).
fn amd(host: &Host, units: &[String]) -> Option<Translation> {
    let features =
        units.iter().filter_map(|unit| host.read(&format!("sys/class/iommu/{unit}/amd-iommu/features")));
    // Newer kernels add a second register after a colon.
    let features = features.filter_map(|text| u64::from_str_radix(text.split(':').next()?, 16).ok());
    let bits = features.map(|efr| [48, 57, 64, 64][(efr >> 10 & 3) as usize]).min()?;
    Some(Translation { pages: "every power of two from 4 KiB", bits })
}

/// Whether the guest's addresses fit.
fn width(guest: u64, bits: u64) -> Option<Finding> {
    let limit = 1u128 << bits;
    (u128::from(guest) + u128::from(HOLE) > limit).then(|| {
        let most = u64::try_from(limit - u128::from(HOLE)).unwrap_or(u64::MAX);
        Finding::blocks(
            TOPIC,
            format!("the IOMMU translates {bits}-bit addresses, too few for a guest of {}", Size(guest)),
            format!("give the guest at most {}, or use an IOMMU with more address bits", Size(most)),
        )
    })
}

/// Whether interrupts are remapped: the names of their controllers then begin with IR. On arm64 it is the interrupt
/// controller that keeps those of devices apart, if it has an ITS.
fn interrupts(host: &Host) -> Option<Finding> {
    const TOPIC: &str = "interrupts";
    let table = host.read("proc/interrupts")?;
    let has = |prefix: &str| table.split_whitespace().any(|word| word.starts_with(prefix));
    if has("IR-") {
        return Some(Finding::fine(TOPIC, "the IOMMU remaps interrupts"));
    }
    if has("ITS-") {
        return Some(Finding::fine(TOPIC, "the interrupt controller has an ITS, which remaps interrupts"));
    }
    let allowed = ["vfio_iommu_type1", "iommufd"].into_iter().find(|module| {
        let file = format!("sys/module/{module}/parameters/allow_unsafe_interrupts");
        host.read(&file).is_some_and(|value| value == "Y" || value == "1")
    });
    let fix = if host.is_arm() {
        "use a machine whose interrupt controller has an ITS"
    } else {
        "remove intremap=off from the kernel's parameters, or enable x2APIC in the firmware"
    };
    Some(match allowed {
        Some(module) => Finding::better(
            TOPIC,
            format!(
                "interrupts are not remapped, and {module} allows that: a guest can raise any interrupt of the host"
            ),
            fix,
        ),
        None => Finding::blocks(
            TOPIC,
            "interrupts are not remapped, so VFIO refuses devices: a guest could raise any interrupt of the host",
            format!(
                "{fix}\n# or, if the guests are trusted:\n\
                 echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_is_the_smaller_of_tables_and_addresses() {
        // A Xeon's register: SAGAW 4 levels, MGAW 48.
        assert_eq!(intel_bits(0x00d2_078c_106f_0466), 48);
        assert_eq!(intel_bits(0x0026_0206), 39);
        assert_eq!(intel_bits(0x0038_0e06), 57);
    }

    #[test]
    fn the_hole_below_4_gib_counts() {
        assert!(width(510 * GIB, 39).is_none());
        assert!(width(511 * GIB, 39).is_some_and(|finding| finding.fix.unwrap().contains("510 GiB")));
        assert!(width(u64::MAX, 64).is_some() && width(1 << 40, 64).is_none());
    }
}
