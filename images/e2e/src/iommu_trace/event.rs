//! The events that L0's virtio-iommu traces.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use vfio_fast_protocol::ranges::Reach;

/// The trace events to enable. `unmap_done` reports unmaps that took place, one event per mapping.
pub const NAMES: [&str; 6] = [
    "virtio_iommu_attach",
    "virtio_iommu_detach_endpoint_from_domain",
    "virtio_iommu_put_domain",
    "virtio_iommu_map",
    "virtio_iommu_unmap_done",
    "virtio_iommu_switch_address_space",
];

/// VIRTIO_IOMMU_MAP_F_READ, VIRTIO_IOMMU_MAP_F_WRITE.
const FLAG_READ: u64 = 1;
const FLAG_WRITE: u64 = 2;

/// One traced operation. An endpoint is a device: its bus, slot and function as one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A device is attached to a domain.
    Attach { domain: u32, endpoint: u32 },
    /// A device is detached from a domain.
    Detach { domain: u32, endpoint: u32 },
    /// A domain is freed, and its mappings with it.
    Free { domain: u32 },
    /// A mapping is created. Drivers can create mappings without read permission.
    Map { domain: u32, reach: Reach, read: bool },
    /// A mapping is removed.
    Unmap { domain: u32, start: u64, last: u64 },
    /// Translation of a device's addresses is switched on or off.
    Switch { endpoint: u32, translates: bool },
}

/// Parses a whole trace.
pub fn parse(text: &str) -> Result<Vec<Event>> {
    let lines = text.lines().enumerate();
    lines
        .map(|(n, line)| parse_line(line).with_context(|| format!("L0's line {}: `{line}`", n + 1)))
        .collect()
}

fn parse_line(line: &str) -> Result<Event> {
    let (name, rest) = line.split_once(' ').context("one word")?;
    let words = rest.split([' ', '(', ')']);
    let fields: BTreeMap<&str, &str> = words.filter_map(|word| word.split_once('=')).collect();
    let number = |name: &str| -> Result<u64> {
        let text = fields.get(name).with_context(|| format!("no {name}"))?;
        let number = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        number.with_context(|| format!("{name} is not a number"))
    };
    let small = |name: &str| -> Result<u32> { Ok(number(name)?.try_into()?) };
    let range = || -> Result<(u64, u64)> {
        let (start, last) = (number("virt_start")?, number("virt_end")?);
        ensure!(start <= last, "a range that ends before it begins");
        Ok((start, last))
    };
    match name {
        "virtio_iommu_attach" => Ok(Event::Attach { domain: small("domain")?, endpoint: small("endpoint")? }),
        "virtio_iommu_detach_endpoint_from_domain" => {
            Ok(Event::Detach { domain: small("domain")?, endpoint: small("endpoint")? })
        }
        "virtio_iommu_put_domain" => Ok(Event::Free { domain: small("domain")? }),
        "virtio_iommu_map" => {
            let ((start, last), flags) = (range()?, number("flags")?);
            let (read, write) = (flags & FLAG_READ != 0, flags & FLAG_WRITE != 0);
            Ok(Event::Map { domain: small("domain")?, reach: Reach { start, last, write }, read })
        }
        "virtio_iommu_unmap_done" => {
            let (start, last) = range()?;
            Ok(Event::Unmap { domain: small("domain")?, start, last })
        }
        "virtio_iommu_switch_address_space" => {
            let device = rest.split(' ').nth(1).context("no device")?;
            Ok(Event::Switch { endpoint: endpoint(device)?, translates: number("enabled")? == 1 })
        }
        _ => bail!("an event that was not requested"),
    }
}

/// The endpoint number of the device at `domain:bus:slot.function`; the domain is optional.
pub fn endpoint(address: &str) -> Result<u32> {
    let parts: Vec<&str> = address.split([':', '.']).collect();
    let [.., bus, slot, function] = parts[..] else { bail!("`{address}` is not a device address") };
    let hex = |text| u32::from_str_radix(text, 16).with_context(|| format!("`{address}`"));
    Ok(hex(bus)? << 8 | hex(slot)? << 3 | hex(function)?)
}
