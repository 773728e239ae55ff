//! PCI devices: their drivers, their groups, and whether this user can open them.

use std::collections::{BTreeMap, BTreeSet};

use crate::ask::Ask;
use crate::finding::{Finding, Verdict};
use crate::host::{Access, Host};
use crate::{reserved, vfio};

const TOPIC: &str = "devices";
const DEVICES: &str = "sys/bus/pci/devices";

/// Kinds of devices that are passed through, by the first digits of their class.
const KINDS: [(&str, &str); 5] = [
    ("0x03", "display"),
    ("0x02", "network"),
    ("0x0108", "NVMe"),
    ("0x12", "accelerator"),
    ("0x0b40", "co-processor"),
];

struct Device {
    address: String,
    kind: Option<&'static str>,
    driver: Option<String>,
    group: Option<String>,
    node: Option<u64>,
}

impl Device {
    /// Bound to vfio-pci or to a driver of VFIO for one vendor's devices.
    fn is_bound(&self) -> bool {
        self.driver.as_ref().is_some_and(|driver| driver.contains("vfio"))
    }

    /// Whether the driver leaves the group to VFIO: it does no DMA of its own.
    fn is_harmless(&self) -> bool {
        self.driver.as_deref().is_none_or(|driver| ["pcieport", "pci-stub"].contains(&driver))
            || self.is_bound()
    }
}

fn devices(host: &Host) -> Vec<Device> {
    let names = host.list(DEVICES).into_iter();
    let device = |address: String| {
        let at = |file: &str| format!("{DEVICES}/{address}/{file}");
        let class = host.read(&at("class")).unwrap_or_default();
        Device {
            kind: KINDS.into_iter().find(|(digits, _)| class.starts_with(digits)).map(|(_, kind)| kind),
            driver: host.link(&at("driver")),
            group: host.link(&at("iommu_group")),
            // -1: the firmware does not say.
            node: host.number(&at("numa_node")),
            address,
        }
    };
    names.map(device).collect()
}

/// The nodes of the devices that are bound to VFIO.
pub fn nodes(host: &Host) -> BTreeSet<u64> {
    devices(host).iter().filter(|device| device.is_bound()).filter_map(|device| device.node).collect()
}

pub fn check(host: &Host, ask: &Ask) -> Vec<Finding> {
    let devices = devices(host);
    let mut findings: Vec<Finding> = Vec::new();
    let mut refused = BTreeSet::new();
    for device in devices.iter().filter(|device| device.is_bound()) {
        let finding = bound(host, ask, device, &devices);
        // What is wrong with a group is said once, not for each of its devices.
        if finding.verdict == Verdict::Fine || device.group.is_none() || refused.insert(&device.group) {
            findings.push(finding);
        }
    }
    let count = devices.iter().filter(|device| device.is_bound()).count() as u64;
    if count < ask.devices {
        let what = format!("{count} of {} devices are bound to vfio-pci", ask.devices);
        findings.push(Finding::better(
            TOPIC,
            what,
            "D=0000:BB:DD.F  # one that the host can spare; libvirt binds it itself\n\
             modprobe vfio-pci; echo vfio-pci > /sys/bus/pci/devices/$D/driver_override\n\
             echo $D > /sys/bus/pci/devices/$D/driver/unbind; echo $D > /sys/bus/pci/drivers_probe",
        ));
    }
    findings.extend(unbound(&devices));
    findings
}

/// A device that is bound to VFIO.
fn bound(host: &Host, ask: &Ask, device: &Device, all: &[Device]) -> Finding {
    let Device { address, kind, driver, group, node } = device;
    let Some(group) = group else {
        let what = format!("{address} is bound to VFIO, but no IOMMU translates its DMA");
        return Finding::blocks(TOPIC, what, "enable the IOMMU (see iommu)");
    };
    let busy = all.iter().find(|other| other.group.as_ref() == Some(group) && !other.is_harmless());
    if let Some(Device { address: other, driver: Some(used), .. }) = busy {
        return Finding::blocks(
            TOPIC,
            format!(
                "{address} shares group {group} with {other}, which the host uses ({used}): VFIO refuses the group"
            ),
            format!(
                "echo {other} > /sys/bus/pci/devices/{other}/driver/unbind\n\
                 # or put the device into another slot, for a group of its own"
            ),
        );
    }
    let refused = reserved::check(host, TOPIC, address, group, ask.guest);
    if let Some(finding) = refused.or_else(|| no_access(host, address, group)) {
        return finding;
    }
    let alone = all.iter().filter(|other| other.group.as_ref() == Some(group)).count() == 1;
    let mut what =
        format!("{address}: {}, driver {}", kind.unwrap_or("other"), driver.as_deref().unwrap_or("none"));
    what +=
        &format!(", group {group}{}", if alone { "" } else { " (shared, all of it can be passed through)" });
    if let Some(node) = node {
        what += &format!(", node {node}");
    }
    Finding::fine(TOPIC, what)
}

/// Whether this user can open the device: its group with type1, or the device itself with iommufd.
fn no_access(host: &Host, address: &str, group: &str) -> Option<Finding> {
    let group = format!("dev/vfio/{group}");
    let device = host
        .list(&format!("{DEVICES}/{address}/vfio-dev"))
        .first()
        .map(|name| format!("dev/vfio/devices/{name}"));
    let by_device = device.as_ref().map_or(Access::Missing, |device| host.access(device));
    if host.access(&group) == Access::Open || (by_device == Access::Open && vfio::has_iommufd(host)) {
        return None;
    }
    let user = host.user.number;
    Some(match vfio::denied(host, &group, host.access(&group)) {
        Some(what) => Finding::blocks(
            TOPIC,
            format!("{address}: {what}; libvirt gives its own QEMU access"),
            format!(
                "chown {user} /{group}  # until the device is bound again; to keep it, a udev rule:\n\
                 # SUBSYSTEM==\"vfio\", OWNER=\"{user}\""
            ),
        ),
        None => Finding::blocks(
            TOPIC,
            format!("{address} is bound to VFIO, but /{group} is not there"),
            if host.is_container() {
                format!("start the container with --device /{group}")
            } else {
                "modprobe vfio-pci  # or use iommufd, if the kernel has no CONFIG_VFIO_GROUP".into()
            },
        ),
    })
}

/// What else could be passed through, by driver.
fn unbound(devices: &[Device]) -> Vec<Finding> {
    let mut drivers: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for device in devices.iter().filter(|device| !device.is_bound()) {
        if let Some(kind) = device.kind {
            let driver = device.driver.as_deref().unwrap_or("no driver");
            drivers.entry((kind, driver)).or_default().push(&device.address);
        }
    }
    let line = |((kind, driver), addresses): (&(&str, &str), &Vec<&str>)| {
        const SHOWN: usize = 3;
        let shown = addresses.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
        let more = addresses.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Finding::fine(TOPIC, format!("used by the host: {kind}, {driver}: {shown}{more}"))
    };
    drivers.iter().map(line).collect()
}
